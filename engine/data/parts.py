"""The three parts of a dataset: what calibrates, what is chosen on, and what alone is judged on.

Statistics, fits and training see `calibrate`. Candidates, bisections, steps kept or rolled back, early stops and trials are
decided on `select`. The report's quality and the gates are computed on `judge`, which nothing else ever sees: the best of many
candidates is partly the luckiest, and only samples that it was not chosen by tell how good it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import DatasetInvalidError
from engine.inspection import DatasetInspection, DeclaredParts

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

PART = "part"
CALIBRATE, SELECT, JUDGE = 0, 1, 2
# More samples do not move statistics and closed-form fits, they only cost time.
MOST_CALIBRATE = 512
# Every candidate runs on all of these.
MOST_SELECT = 1024
# Of what does not calibrate, one in three selects. The others judge: theirs is the interval that a gate is held against.
SELECT_ONE_IN = 3
# Below that, one sample more or less decides about a step. Too few of them are not parted.
LEAST_SELECT = 32
# What may make a quantized network more faithful is chosen on no fewer.
FEWEST_TO_REFINE = 4
LEAST_PARTED = LEAST_SELECT * SELECT_ONE_IN
_SEED = 0

Rule = Literal["declared", "labels", "seeded"]


@dataclass(frozen=True)
class Sizes:
    """How many samples each part has, by which rule, and why in words."""

    rule: Rule
    calibrate: int
    select: int
    judge: int
    # Of the judge part: all of it or none.
    judge_labelled: int
    # True: the same samples do both, because there are too few or the dataset says so.
    select_is_judge: bool
    reason: str


def part_sizes(data: DatasetInspection, judge: DatasetInspection | None = None, *, inputs: Sequence[str] = ()) -> Sizes:
    """Give the parts that a job makes of its dataset, and of a second one that judges, for a network with these inputs.

    Raises:
        DatasetInvalidError: there are too few samples, or the array `part` says what cannot be done.
    """
    if judge is not None:
        _refuse_half_labelled(judge.labelled, judge.samples, "The dataset that judges")
        if judge.samples < 2:
            raise DatasetInvalidError("The dataset that judges holds one sample; at least two are needed.")
    if data.declared is not None and PART not in inputs:
        return _declared(data.declared, judge)
    if data.samples < 2:
        raise DatasetInvalidError("At least two samples are needed: one to calibrate and more to judge.")
    return _parted(data, judge)


def _declared(found: DeclaredParts, judge: DatasetInspection | None) -> Sizes:
    """Give the parts that the array `part` names; one that it leaves out is shared with its neighbour."""
    if found.problem is not None:
        raise DatasetInvalidError(
            found.problem, hint="`part` says per sample: 0 calibrates, 1 is for choosing, 2 judges. Else rename it."
        )
    _refuse_half_labelled(found.select_labelled, found.select, "Part 1 (select)")
    _refuse_half_labelled(found.judge_labelled, found.judge, "Part 2 (judge)")
    own = judge is None
    if not found.select and not (found.judge and own):
        raise DatasetInvalidError(
            "The array `part` leaves no sample to choose"
            + (" or judge" if own else "")
            + " on: all are calibration's (0)",
            hint="Give some samples the part 1 (select) and others 2 (judge).",
        )
    shared = own and not (found.select and found.judge)
    select = found.select or found.judge
    missing = "" if not shared else f"; it names none to {'judge' if found.select else 'select'}, so the others do both"
    missing += "" if found.calibrate else "; it names none to calibrate, so those that select do that too"
    left_out = f"; its {found.judge:,} samples that judge are left out for those" if not own and found.judge else ""
    return Sizes(
        rule="declared",
        calibrate=found.calibrate or select,
        select=select,
        judge=(found.judge or select) if judge is None else judge.samples,
        judge_labelled=(found.judge_labelled if found.judge else found.select_labelled) if own else _labelled(judge),
        select_is_judge=shared,
        reason=(
            "The dataset's array `part` says so" if own else "The array `part` says so, and a second dataset judges"
        )
        + missing
        + left_out,
    )


def _parted(data: DatasetInspection, judge: DatasetInspection | None) -> Sizes:
    """Part by labels: those without calibrate. Where all samples have one or none has, a seeded draw calibrates."""
    by_label = 0 < data.labelled < data.samples
    rule: Rule = "labels" if by_label else "seeded"
    who = "Unlabelled samples calibrate" if by_label else f"A seeded draw of at most {MOST_CALIBRATE} calibrates"
    if judge is not None:
        calibrate = data.unlabelled if by_label else min(MOST_CALIBRATE, data.samples // 2)
        reason = f"{who}, the others select, and a second dataset judges"
        return Sizes(rule, calibrate, data.samples - calibrate, judge.samples, _labelled(judge), False, reason)
    calibrate = data.unlabelled if by_label else min(MOST_CALIBRATE, data.samples // 3)
    rest = data.samples - calibrate
    if rest >= LEAST_PARTED:
        select = min(MOST_SELECT, rest // SELECT_ONE_IN)
        reason = f"{who}; of the others one in {SELECT_ONE_IN} selects, at most {MOST_SELECT}, and the rest judges"
        return Sizes(rule, calibrate, select, rest - select, _of(data, rest - select), False, reason)
    # Of all samples, what is left when a third of them calibrates.
    needed = LEAST_PARTED if by_label else (3 * LEAST_PARTED - 1) // 2
    reason = (
        f"{data.labelled if by_label else data.samples:,}{' labelled' if by_label else ''} samples are too few to choose on"
        f" some and judge on others ({needed} are needed), so the same do both"
    )
    if not by_label:
        calibrate = data.samples // 2
        rest = data.samples - calibrate
    return Sizes(rule, calibrate, rest, rest, _of(data, rest), True, reason)


def _of(data: DatasetInspection, judging: int) -> int:
    return judging if data.labelled else 0


def _labelled(judge: DatasetInspection | None) -> int:
    return 0 if judge is None else judge.labelled


def _refuse_half_labelled(labelled: int, samples: int, which: str) -> None:
    if 0 < labelled < samples:
        raise DatasetInvalidError(
            f"{which} holds {samples:,} samples, of which {samples - labelled:,} have no label (-1).",
            hint="Give all of them labels or none, and leave unlabelled samples to calibrate.",
        )


def draw(
    found: Sizes, count: int, *, labels: "Array | None", labelled: "Array | None", part: "Array | None"
) -> "Drawn":
    """Give the indices of the samples of each part, in ascending order; the same file gives the same parts.

    Args:
        found: the sizes, from `part_sizes` of the same dataset.
        count: how many samples the dataset has.
        labels: class numbers, where labels are such: every part gets its share of each class.
        labelled: whether each sample has a label; None: none has.
        part: the array that says it, where the rule is `declared`.
    """
    import numpy as np  # noqa: PLC0415  # a web process reads the sizes, and has no other use for numpy

    everything = np.arange(count)
    if found.rule == "declared":
        assert part is not None
        calibrate, select, judge = (np.flatnonzero(part == number) for number in (CALIBRATE, SELECT, JUDGE))
        select = select if len(select) else judge
        judge = judge if len(judge) or not found.select_is_judge else select
        return Drawn(calibrate if len(calibrate) else select, select, judge)
    random = np.random.default_rng(_SEED)
    if found.rule == "labels":
        assert labelled is not None
        calibrate = everything[~labelled]
    else:
        calibrate = _stratified(everything, found.calibrate, labels, random)
    rest = np.setdiff1d(everything, calibrate)
    select = _stratified(rest, found.select, labels, random)
    return Drawn(calibrate, select, select if found.select_is_judge else np.setdiff1d(rest, select))


@dataclass(frozen=True)
class Drawn:
    """Indices of samples; `judge` is of no use where a second dataset judges."""

    calibrate: "Array"
    select: "Array"
    judge: "Array"


def _stratified(among: "Array", count: int, labels: "Array | None", random: Any) -> "Array":
    """Draw so many, of each class its share up to one sample."""
    import numpy as np  # noqa: PLC0415  # see above

    mixed = random.permutation(among)
    if labels is not None:
        mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    # Every (n / count)-th of the samples in order of their class.
    steps = np.arange(len(mixed) + 1) * count // max(len(mixed), 1)
    return np.sort(mixed[np.diff(steps) > 0])
