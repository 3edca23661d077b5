"""What each output of a network means, told from its graph, its names, the labels and its values, with the reason in words.

A wrong guess must not hide damage: where nothing says that an output decides something, its numbers have to stay.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from engine.data.initial_state import STATE_WORDS, core, same_core, split_name
from engine.graph.endings import Ending
from engine.measure.kinds.boxes import Form, recognise_form
from engine.measure.metrics import Array
from engine.measure.observed import Observed
from engine.outputs import DEFAULT_WEIGHTS, OutputDeclaration, OutputKind


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of names, as exporters and hubs use them.
_EMBEDDING_WORDS = _words(
    "embedding embeddings embed embeds embs emb pooler pooled feature features feat feats representation vector"
)
_CLASS_WORDS = _words(
    "logits logit probabilities probability probs prob scores score class classes cls label labels predictions"
)
_BOX_WORDS = _words("box boxes bbox bboxes det dets detection detections rois")
_MASK_WORDS = _words("mask masks seg segmentation matte alpha saliency")
_MAP_WORDS = _words("heat heatmap heatmaps hm depth disparity flow attention attentions")
_PLACE_WORDS = _words("landmark landmarks keypoint keypoints kpt kpts coord coords point points pose offset")
_TOKEN_WORDS = _words("sequence sequences token tokens generated ids")
_SCORE_WORDS = _words("score scores conf confidence logits probs cls class classes")
_LABEL_WORDS = _words("label labels")
# Heads as wide as the class lists that many networks are trained on: ImageNet, Places, AudioSet.
_CLASS_COUNTS = frozenset({365, 521, 527, 1000, 1001, 11221, 11821, 21841, 21843})
# Vectors narrower than this stand for nothing.
_LEAST_WIDTH = 16
_LEAST_VOCABULARY = 256
_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "QGemm"})
# A winner has at least this share of what softmax makes of the scores, in most rows, and it is not always the same few.
_CLEAR, _MOSTLY, _FEWEST_WINNERS = 0.8, 0.8, 3
_STRIDES = (4, 8, 16, 32, 64)
_FEWEST_CELLS = 20
# Of an output that is an input passed on: it is right whatever becomes of the network.
_PASSED_ON_WEIGHT = 0.1

Found = tuple[OutputKind, str]


@dataclass(frozen=True)
class Recognition:
    """What an output is taken for, and why.

    `kind` is None for what cannot be compared. `companions`: by role, outputs that hold scores or labels of these rows;
    `judged_with`: the output whose rows this one belongs to; `passed_on`: it is an input, and says nothing of the network.
    """

    name: str
    kind: OutputKind | None
    reason: str
    weight: float = 1.0
    ignored: bool = False
    rows_vary: bool = False
    companions: Mapping[str, str] = field(default_factory=dict)
    judged_with: str | None = None
    passed_on: bool = False

    @property
    def judged(self) -> bool:
        """Say whether it is compared on its own."""
        return self.kind is not None and not self.ignored and self.judged_with is None


@dataclass(frozen=True)
class Labels:
    """The output that the labels fit, the metric that they are for, and what they were taken for, in words."""

    output: str
    metric: str
    told: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that is known of one output."""

    name: str
    seen: Observed
    ending: Ending | None
    inputs: Mapping[str, Array]
    shape: tuple[int, ...]
    rows_vary: bool
    labels: Labels | None

    @property
    def words(self) -> frozenset[str]:
        """Give the words that its name is made of."""
        return frozenset(split_name(self.name))

    def passes(self, op: str) -> bool:
        """Say whether it depends on an operator of this type."""
        return self.ending is not None and op in self.ending.upstream

    @property
    def op(self) -> str | None:
        """Give the operator that makes it."""
        return self.ending.op if self.ending else None


def recognise(
    outputs: Mapping[str, Observed],
    *,
    inputs: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    endings: Mapping[str, Ending],
    rows_vary: frozenset[str] = frozenset(),
    declared: Mapping[str, OutputDeclaration] | None = None,
    labelled: Labels | None = None,
    like: Mapping[str, tuple[OutputKind, str]] | None = None,
) -> dict[str, Recognition]:
    """Tell for each output what it is.

    Args:
        outputs: what was seen of their values, in the network's order.
        inputs: one feed.
        shapes: of the outputs of one run on that feed.
        endings: how the graph makes them, as far as the graph is known.
        rows_vary: outputs that had different shapes for inputs of equal shapes.
        declared: what the owner says.
        labelled: what the labels are for.
        like: what outputs were taken for on other samples, and why; they stay that.
    """
    declared = declared or {}
    found: dict[str, Recognition] = {}
    for name, seen in outputs.items():
        ending = endings.get(name)
        varies = name in rows_vary or (ending is not None and ending.rows_depend_on_data and len(seen.shapes) > 1)
        labels = labelled if labelled and labelled.output == name else None
        facts = Facts(name, seen, ending, inputs, shapes[name], varies, labels)
        said = declared.get(name)
        kind, reason = _declared(said) or _by_labels(facts) or (like or {}).get(name) or _recognise(facts)
        passed_on = ending is not None and ending.passed_on
        usual = _PASSED_ON_WEIGHT if passed_on else DEFAULT_WEIGHTS.get(kind, 1.0)
        weight = said.weight if said and said.weight else usual
        found[name] = Recognition(name, kind, reason, weight, bool(said and said.ignore), varies, passed_on=passed_on)
    return _with_companions(found, outputs, declared)


def _declared(said: OutputDeclaration | None) -> Found | None:
    if said is None:
        return None
    if said.kind is not None:
        return said.kind, "the job or the dataset declares it"
    return ("values", "the job or the dataset declares that nobody reads it") if said.ignore else None


def _recognise(facts: Facts) -> Found:
    for rule in _RULES:
        found = rule(facts)
        if found is not None:
            return found
    return "values", "nothing in the graph, the names or the values says that its numbers decide something"


# Rules, the surest first. Each gives a kind and its reason, or None.


def _by_labels(facts: Facts) -> Found | None:
    if facts.labels is None:
        return None
    metric, told = facts.labels.metric, facts.labels.told
    reason = f"the labels, which are for {metric}{f' and read {told}' if told else ''}, fit it"
    if metric in {"mse", "mae"}:
        return "values", reason
    if metric == "perplexity" and facts.seen.ndim == 3:
        return "tokens", reason
    if metric == "edit_distance" and not facts.seen.is_float:
        return "tokens", reason
    return ("mask" if metric == "iou" or facts.seen.ndim >= 4 else "classes"), reason


def _by_state(facts: Facts) -> Found | None:
    if not facts.seen.is_float:
        return None
    twin = next(iter(_twins(facts)), None)
    starts = facts.ending.state_of if facts.ending else None
    if starts:
        return "state", f"it is the last state of a recurrent operator that starts from the input `{starts[0]}`"
    if twin is not None and facts.words & {"present"}:
        return "state", f"it is what a cache of keys and values has become, which comes in as `{twin}`"
    if twin is not None and core(facts.name) & STATE_WORDS:
        return "state", f"the input `{twin}` has its name and its shape, so that it comes back at the next step"
    if {"present", "key"} <= facts.words or {"present", "value"} <= facts.words:
        return "state", "its name is that of a cache of keys and values"
    return None


def _by_passing_on(facts: Facts) -> Found | None:
    if facts.ending is None or not facts.ending.passed_on:
        return None
    return (
        "values" if facts.seen.is_float else "classes",
        "it is an input that is passed on, and says nothing of what the network computes",
    )


def _twins(facts: Facts) -> Iterator[str]:
    """Yield inputs that are this output one step before: a like name, the same shape but for one axis that may grow."""
    for name, array in facts.inputs.items():
        if not np.issubdtype(array.dtype, np.inexact) and array.dtype.kind != "V":
            continue
        differing = sum(left != right for left, right in zip(array.shape, facts.shape, strict=False))
        if same_core(name, facts.name) and array.ndim == len(facts.shape) and differing <= 1:
            yield name


def _by_boxes(facts: Facts) -> Found | None:
    seen = facts.seen
    if not seen.is_float:
        chosen = facts.op == "NonMaxSuppression"
        return ("boxes", "NonMaxSuppression gives it: its rows name what the network detects") if chosen else None
    form = recognise_form(seen.kept, alone=True) if seen.ndim >= 3 or facts.rows_vary else None
    if form is None:
        return None
    grid = _grid(facts) if form.scores_from is not None and _has_shares(form, seen.kept) else None
    complete = form.label is not None and form.score is not None and seen.width in {6, 7}
    reasons = (
        (
            facts.passes("NonMaxSuppression"),
            "its rows hold boxes that NonMaxSuppression inside the network leaves over",
        ),
        (bool(facts.words & _BOX_WORDS), "its name and its rows are those of boxes"),
        (grid is not None, f"it has a row for each of the {grid} cells of a detector's grids on the input image"),
        (complete, "its rows hold a box, a score and a class number"),
    )
    return next((("boxes", reason) for holds, reason in reasons if holds), None)


def _has_shares(form: Form, samples: Sequence[Array]) -> bool:
    """Say whether the scores of rows are shares, as heads that are read as they are give them."""
    scores = [each for each in (form.read(sample).scores for sample in samples) if each is not None and each.size]
    return bool(scores) and all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in scores)


def _grid(facts: Facts) -> int | None:
    """Give the number of rows where it is that of the cells of a detector's grids on an image that comes in."""
    if facts.seen.ndim != 3:
        return None
    images: list[tuple[int, ...]] = [array.shape for array in facts.inputs.values() if array.ndim == 4]
    rows: set[int] = {size for shape in facts.seen.shapes for size in shape[-2:] if size >= _FEWEST_CELLS}
    for shape in images:
        height, width = shape[2:] if shape[1] <= 4 else shape[1:3]
        cells = [-(-height // stride) * -(-width // stride) for stride in _STRIDES]
        # Grids of neighbouring strides, with one to three boxes in each cell.
        for first, last in combinations(range(len(cells) + 1), 2):
            found = {sum(cells[first:last]) * anchors for anchors in (1, 2, 3)} & rows
            if last - first > 1 and found:
                return max(found)
    return None


def _by_tokens(facts: Facts) -> Found | None:
    seen = facts.seen
    integers = [array for array in facts.inputs.values() if array.dtype.kind in "iu" and array.ndim >= 2]
    if not seen.is_float:
        named = facts.words & _TOKEN_WORDS and facts.seen.ndim >= 2
        return ("tokens", "its name is that of tokens that were chosen") if named else None
    if seen.ndim != 3 or seen.width < 2:
        return None
    if facts.ending is not None and seen.width in facts.ending.vocabulary and facts.op != "LayerNormalization":
        return "tokens", f"its last axis is as long as the table of {seen.width} tokens that an input is looked up in"
    if integers and seen.width >= _LEAST_VOCABULARY and facts.words & {"logits"}:
        return "tokens", f"it scores {seen.width} tokens at each position of an input of integers"
    return None


def _by_winners(facts: Facts) -> Found | None:
    """Tell scores of many classes at each position, as readers of text and speech give them (CTC), by their clear winners.

    Behind a convolution the last axis is none of classes, so that only products of matrices count.
    """
    seen = facts.seen
    if not seen.is_float or seen.ndim != 3 or seen.width < _LEAST_VOCABULARY or facts.op not in _PRODUCTS:
        return None
    if facts.words & (_EMBEDDING_WORDS | _MAP_WORDS) or {each.shape[-1] for each in seen.kept} != {seen.width}:
        return None
    rows = np.concatenate([np.asarray(each, np.float64).reshape(-1, seen.width) for each in seen.kept])
    rows = np.nan_to_num(rows, posinf=0, neginf=0)
    winners = rows.argmax(axis=-1)
    shares = 1 / np.exp(rows - rows.max(axis=-1, keepdims=True)).sum(axis=-1)
    if np.mean(shares > _CLEAR) < _MOSTLY or len(np.unique(winners)) < _FEWEST_WINNERS:
        return None
    return (
        "tokens",
        f"a linear layer scores {seen.width} classes at each position, and one of them stands far above the others",
    )


def _by_decision(facts: Facts) -> Found | None:
    """Tell integers and booleans: they are decisions already."""
    seen = facts.seen
    if seen.is_float:
        return None
    if facts.rows_vary:
        if facts.passes("NonZero"):
            return "mask", "it lists the places that NonZero finds"
        return "tokens", "it holds integers, and the data decide how many"
    if seen.ndim >= 3:
        return "mask", "it holds a whole number for each place"
    how = "ArgMax gives it" if facts.op == "ArgMax" else "TopK gives it" if facts.op == "TopK" else "it holds integers"
    return "classes", f"{how}: what counts is which class was chosen"


def _by_probabilities(facts: Facts) -> Found | None:
    seen, maps = facts.seen, facts.words & _MAP_WORDS
    softmax = facts.op in {"Softmax", "LogSoftmax"}
    if seen.ndim in {2, 3} and seen.width >= 2 and not maps:
        if softmax and facts.seen.shapes and not _softmax_elsewhere(facts):
            return "classes", f"{facts.op} makes it"
        if seen.adds_up and seen.unit_range:
            return "classes", "its rows are probabilities that add up to one"
    if seen.ndim == 4 and seen.adds_up_on_1 and seen.unit_range and not maps:
        return "mask", "at each place its channels are probabilities that add up to one"
    return None


def _softmax_elsewhere(facts: Facts) -> bool:
    """Say whether a softmax runs over another axis than the last one."""
    axis = facts.ending.axis if facts.ending else None
    return axis is not None and axis not in {-1, facts.seen.ndim - 1} and not facts.seen.adds_up


def _by_mask(facts: Facts) -> Found | None:
    seen = facts.seen
    # Where no place is ever marked, the decisions tell nothing.
    if seen.ndim not in {3, 4} or facts.words & _MAP_WORDS or not seen.decided_both_ways:
        return None
    if facts.words & _MASK_WORDS:
        return "mask", "its name is that of a mask"
    if facts.op == "Sigmoid" and seen.ndim == 4 and seen.bimodal:
        return "mask", "Sigmoid makes it, and nearly all of its places are near 0 or near 1"
    return None


def _by_embedding(facts: Facts) -> Found | None:
    seen, words, ending = facts.seen, facts.words, facts.ending
    if seen.ndim not in {2, 3} or seen.width < 2 or facts.rows_vary:
        return None
    named = words & _EMBEDDING_WORDS or {"last", "hidden"} <= words or {"hidden", "states"} <= words
    # Without a head behind it, and too wide for a list of numbers each of which means something.
    headless = seen.width >= 2 * _LEAST_WIDTH and seen.width not in _CLASS_COUNTS and not words & _CLASS_WORDS
    unit = seen.width >= _LEAST_WIDTH and seen.unit_length and not seen.adds_up
    reasons = (
        (ending is not None and ending.unit_length, "its vectors are divided by their own length"),
        (unit, "all of its vectors have the length 1"),
        (bool(named), "its name is that of vectors which stand for their input"),
        (
            headless and ending is not None and ending.pooled,
            f"it is a mean over positions of vectors of {seen.width} numbers, and no head follows",
        ),
        (
            headless and facts.op == "LayerNormalization",
            f"it holds normalised vectors of {seen.width} numbers, and no head follows",
        ),
    )
    return next((("embedding", reason) for holds, reason in reasons if holds), None)


def _by_name_of_classes(facts: Facts) -> Found | None:
    seen = facts.seen
    if facts.words & (_MAP_WORDS | _PLACE_WORDS | _BOX_WORDS) or seen.ndim not in {2, 3} or facts.rows_vary:
        return None
    if facts.words & _CLASS_WORDS and seen.width >= 2:
        return "classes", "its name is that of scores of classes"
    wide = seen.width in _CLASS_COUNTS and (facts.ending is None or facts.ending.linear or facts.ending.pooled)
    if wide and seen.ndim == 2:
        return "classes", f"it has {seen.width} numbers, as many as a well-known list of classes"
    return None


def _by_threshold(facts: Facts) -> Found | None:
    """Tell decisions of yes or no. Where only one of both ever comes, they tell nothing, and the numbers count."""
    seen = facts.seen
    if facts.words & (_MAP_WORDS | _PLACE_WORDS | _BOX_WORDS) or seen.ndim > 3 or facts.rows_vary:
        return None
    averaged = facts.ending is not None and facts.ending.mean_of_sigmoid
    sigmoid = averaged or facts.op == "Sigmoid"
    if not sigmoid and not (facts.words & _CLASS_WORDS and seen.width == 1):
        return None
    if seen.decided_both_ways:
        made = "its name is that of a score"
        if sigmoid:
            made = "it is a mean of what Sigmoid makes" if averaged else "Sigmoid makes it"
        return "classes", f"{made}, and it lies on both sides of its threshold"
    side = "half" if seen.unit_range else "zero"
    return "values", f"it is one score, but on these samples it stays on one side of {side}, so that its size counts"


_RULES: tuple[Callable[[Facts], Found | None], ...] = (
    _by_state,
    _by_passing_on,
    _by_probabilities,
    _by_boxes,
    _by_tokens,
    _by_decision,
    _by_mask,
    _by_embedding,
    _by_name_of_classes,
    _by_winners,
    _by_threshold,
)


# Outputs that belong together


def _with_companions(
    found: dict[str, Recognition], outputs: Mapping[str, Observed], declared: Mapping[str, OutputDeclaration]
) -> dict[str, Recognition]:
    """Give boxes the scores and labels that other outputs hold of their rows."""
    for name, boxes in list(found.items()):
        if boxes.kind != "boxes" or boxes.judged_with or boxes.ignored or not _holds_boxes_alone(outputs[name]):
            continue
        roles: dict[str, str] = {}
        for other, taken in found.items():
            fixed = other in declared and declared[other].kind not in {None, "boxes"}
            apart = other == name or fixed or taken.ignored
            role = None if apart else _role(other, outputs, name, boxes)
            if role is not None and role not in roles:
                roles[role] = other
        found[name] = replace(boxes, companions=roles)
        for role, other in roles.items():
            reason = f"it holds the {role} of the rows of `{name}`, and is judged with them"
            found[other] = replace(found[other], kind="boxes", reason=reason, judged_with=name)
    return found


def _holds_boxes_alone(seen: Observed) -> bool:
    return seen.is_float and seen.width == 4


def _role(other: str, outputs: Mapping[str, Observed], boxes: str, recognition: Recognition) -> str | None:
    seen, rows = outputs[other], [int(np.prod(each.shape[:-1])) for each in outputs[boxes].kept]
    words = frozenset(split_name(other))
    if not seen.kept or not rows or not (words & (_SCORE_WORDS | _LABEL_WORDS) or recognition.rows_vary):
        return None
    pairs = list(zip(seen.kept, rows, strict=False))
    if not any(count for _, count in pairs):
        return None
    if all(each.size == count for each, count in pairs):
        return "scores" if seen.is_float and not words & _LABEL_WORDS else "labels"
    by_class = all(each.ndim >= 2 and count in each.shape[-2:] for each, count in pairs)
    return "scores" if seen.is_float and by_class and words & _SCORE_WORDS else None


def main_output(found: Iterable[Recognition]) -> str | None:
    """Give the output that speaks for the network: the first that decides something, else the first that is no state.

    One that is an input passed on speaks only where there is no other.
    """
    judged = sorted((each for each in found if each.judged), key=lambda each: each.passed_on)
    deciding = [each for each in judged if each.kind in {"classes", "tokens", "mask", "boxes"} and not each.passed_on]
    other = [each for each in judged if each.kind != "state"]
    return next((each.name for each in (*deciding, *other, *judged)), None)
