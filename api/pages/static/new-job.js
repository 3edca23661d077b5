// A new job: what it works on, a goal or a recipe, and where it runs.
import { ask } from "./api.js";
import { lossLimit } from "./loss-limit.js";
import { RecipeBuilder } from "./recipe.js";
import { takesFiles } from "./upload.js";

const by = (id) => document.getElementById(id);
const choices = JSON.parse(by("choices").textContent);
const known = new Map();
const builder = new RecipeBuilder(by("passes"), by("no-steps"), choices.passes);

for (const each of choices.recipes) by("named").append(new Option(`${each.name}: ${each.summary}`, each.name));
for (const each of choices.passes) by("add-pass").append(new Option(each.type, each.type));
by("add").addEventListener("click", () => builder.add(by("add-pass").value));
by("named").addEventListener("change", () => {
  builder.clear();
  const found = choices.recipes.find((each) => each.name === by("named").value);
  for (const step of found?.passes ?? []) builder.add(step.type, step);
});

async function chosen(kind, id) {
  if (!id) return null;
  if (!known.has(id)) known.set(id, await ask("GET", `/v1/${kind}/${id}`));
  return known.get(id);
}

const way = () => document.querySelector("[name=way]:checked").value;

async function limit() {
  const [model, data] = [await chosen("models", by("model").value), await chosen("datasets", by("dataset").value)];
  const found = lossLimit(Number(by("max-drop").value), model, data, by("kind").value);
  by("kind-field").hidden = !(found.ask || by("kind").value);
  by("loss-said").textContent = model || data ? found.words : "";
  return found;
}

function shown() {
  by("goal").hidden = way() !== "goal";
  by("loss-said").hidden = way() !== "goal";
  by("recipe").hidden = way() !== "recipe";
}
for (const each of document.querySelectorAll("[name=way]")) each.addEventListener("change", shown);
for (const each of ["model", "dataset", "kind", "max-drop"]) by(each).addEventListener("change", () => limit().catch(wrong));
shown();
limit().catch(wrong);

for (const place of document.querySelectorAll(".drop")) {
  takesFiles(place, (stored) => {
    const select = by(place.dataset.into);
    select.hidden = false;
    select.append(new Option(stored.name, stored.id, true, true));
    known.set(stored.id, stored);
    limit().catch(wrong);
  });
}

function labels() {
  const found = {};
  for (const part of by("labels").value.split(",").map((each) => each.trim()).filter(Boolean)) {
    const at = part.indexOf("=");
    if (at < 1) throw new Error(`A label is name=value, such as branch=main; "${part}" is not.`);
    found[part.slice(0, at).trim()] = part.slice(at + 1).trim();
  }
  return found;
}

async function body() {
  if (!by("model").value) throw new Error("Choose a network, or upload one.");
  const target = { provider: by("provider").value, threads: Number(by("threads").value), batch: Number(by("batch").value) };
  const job = { model: by("model").value, target, labels: labels(), ...(by("dataset").value ? { dataset: by("dataset").value } : {}) };
  const loss = await limit();
  if (way() === "recipe") {
    const passes = builder.value();
    if (!passes.length) throw new Error("A recipe has at least one step.");
    return { kind: "compress", ...job, recipe: { passes } };
  }
  if (loss.ask && !loss.gate) throw new Error(loss.words);
  const limits = loss.gate ? [loss.gate] : [];
  const speedup = Number(by("min-speedup").value);
  if (speedup) limits.push({ metric: "latency_p50", rule: "max_ratio", value: 1 / speedup });
  const size = Number(by("max-size").value) * Number(by("max-size-unit").value);
  if (size) limits.push({ metric: "size_bytes", rule: "max", value: size });
  const seconds = Number(by("budget").value);
  const trials = Number(by("trials").value);
  const budget = { ...(seconds ? { max_seconds: seconds } : {}), ...(trials ? { max_trials: trials } : {}) };
  return { kind: "search", ...job, budget, goal: { minimise: by("minimise").value, subject_to: limits, effort: by("effort").value } };
}

function wrong(error) {
  const place = by("problems");
  place.replaceChildren();
  const problem = error.problem ?? {};
  place.append(Object.assign(document.createElement("strong"), { textContent: error.message }));
  for (const each of problem.errors ?? []) {
    place.append(Object.assign(document.createElement("p"), { textContent: `${(each.pointer ?? each.parameter ?? "").replace(/^\//, "").replaceAll("/", " › ")}: ${each.detail}` }));
  }
  if (problem.hint) place.append(Object.assign(document.createElement("p"), { textContent: problem.hint }));
  place.hidden = false;
  place.scrollIntoView({ block: "nearest" });
}

function tell(plan) {
  const place = by("plan");
  const lines = [];
  if (plan.cache === "hit") lines.push("The same work was done before: its result answers at once.");
  if (plan.estimate) lines.push(plan.estimate.summary);
  lines.push(...plan.warnings);
  for (const each of plan.gate_samples ?? []) if (each.summary) lines.push(each.summary);
  if (!lines.length) lines.push("The job would be accepted as it is.");
  place.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
  place.hidden = false;
}

by("check").addEventListener("click", async () => {
  by("problems").hidden = true;
  by("plan").hidden = true;
  try {
    const plan = await ask("POST", "/v1/jobs:validate", await body());
    if (plan.valid) tell(plan);
    else wrong(Object.assign(new Error(plan.problem.detail), { problem: plan.problem }));
  } catch (error) {
    wrong(error);
  }
});

by("job").addEventListener("submit", async (event) => {
  event.preventDefault();
  by("problems").hidden = true;
  by("start").disabled = true;
  try {
    const job = await ask("POST", "/v1/jobs", await body(), { "Idempotency-Key": token });
    location.assign(`/jobs/${job.id}`);
  } catch (error) {
    wrong(error);
    by("start").disabled = false;
    token = fresh();
  }
});

// A second click, or a request that is sent again, starts no second job. (randomUUID is there by https only.)
function fresh() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
}
let token = fresh();
