// "Lose at most so much" as a gate, by the labels' metric, else by what the main output means; the command line does the same.
const SHARES = new Set(["top1", "top5", "f1", "iou"]);
const BESIDE = { classes: "top1_agreement", embedding: "cosine", values: "r2", mask: "mask_iou", boxes: "box_f1", tokens: "token_agreement" };
const CLASS_WORDS = new Set(["logits", "logit", "probabilities", "probability", "probs", "prob", "scores"]);

function declared(model, data) {
  const outputs = model?.inspection?.outputs ?? [];
  const told = data?.outputs ?? {};
  const read = outputs.filter((each) => !told[each.name]?.ignore);
  for (const each of read) if (BESIDE[told[each.name]?.kind]) return told[each.name].kind;
  if (read.length === 1 && (read[0].shape ?? []).length === 2) {
    const words = read[0].name.toLowerCase().split(/[_./]/).map((word) => word.replace(/^\d+|\d+$/g, ""));
    if (words.some((word) => CLASS_WORDS.has(word))) return "classes";
  }
  return null;
}

// Gives { gate, words }; { words, ask: true } where the user has to say what the output means; { words } where nothing can be limited.
export function lossLimit(percent, model, data, kind) {
  if (!data) return { words: "Without data no loss can be told: only the storage of numbers changes." };
  const share = percent / 100;
  const { metric, labelled } = data.inspection ?? {};
  if (metric && labelled) {
    if (!SHARES.has(metric)) return { words: `The labels are judged by ${metric}, which is no share of samples: give a recipe, or use the command line to name the limit.` };
    return { gate: { metric, rule: "max_drop", value: share }, words: `${metric} may fall by at most ${percent} points, by the labels of the data.` };
  }
  const found = kind || declared(model, data);
  if (!found) return { ask: true, words: "The data have no labels: say what the output means, so that it can be compared with the original's." };
  return { gate: { metric: BESIDE[found], rule: "min", value: 1 - share }, words: `${BESIDE[found]} with the original of at least ${100 - percent} %, for the data have no labels.`, ask: !declared(model, data) };
}
