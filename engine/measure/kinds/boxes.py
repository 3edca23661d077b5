"""Detections: what counts is that each finds its counterpart, by place, score and class, however many rows there are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.metrics import Array
from engine.report.values import Quality

# A row and its counterpart overlap at least so far, and their scores differ by no more than this share of the scores' range.
_LEAST_IOU = 0.75
_SCORE_SLACK = 0.1
# Rows that count, where the network itself has not dropped the others.
_LEAST_SCORE = 0.25
_ROWS_PER_SAMPLE = 20
_MOST_ROWS = 300
_READ_BATCHES = 16
_READ_ROWS = 4000


@dataclass(frozen=True)
class Detections:
    """Rows of one sample: boxes (rows, 4) by their corners, scores and classes (rows,); None where there are none."""

    boxes: Floats
    scores: Floats | None
    classes: Floats | None

    def take(self, chosen: Array) -> "Detections":
        """Give some of the rows."""
        return Detections(
            self.boxes[chosen],
            None if self.scores is None else self.scores[chosen],
            None if self.classes is None else self.classes[chosen],
        )


@dataclass(frozen=True)
class Form:
    """How boxes are written: which columns hold what. `centred`: centre and size instead of two corners."""

    box: int = 0
    centred: bool = False
    score: int | None = None
    label: int | None = None
    # Scores of each class from this column on, times the score that there is an object at all.
    scores_from: int | None = None
    objectness: int | None = None
    features_first: bool = False

    def read(self, rows: Array) -> Detections:
        """Read one sample's rows, which are on the last but one axis, or on the last one where features come first."""
        table = np.nan_to_num(np.asarray(rows, np.float64))
        table = np.moveaxis(table, -2, -1) if self.features_first and table.ndim > 1 else table
        table = table.reshape(-1, table.shape[-1])
        boxes = table[:, self.box : self.box + 4]
        if self.centred:
            middle, half = boxes[:, :2], boxes[:, 2:] / 2
            boxes = np.concatenate([middle - half, middle + half], axis=1)
        scores = None if self.score is None else table[:, self.score]
        classes = None if self.label is None else table[:, self.label]
        if self.scores_from is not None:
            each = table[:, self.scores_from :]
            classes, scores = each.argmax(axis=1).astype(np.float64), each.max(axis=1)
            if self.objectness is not None:
                scores = scores * table[:, self.objectness]
        return Detections(boxes, scores, classes)


def recognise_form(samples: Iterable[Array], *, alone: bool = False) -> Form | None:
    """Tell from some samples' outputs how boxes are written; None where the numbers are none.

    `alone`: scores and classes are in other outputs, so that four numbers are all there are.
    """
    some = [each for each in samples if each.ndim >= 2 and each.size]
    if not some:
        return None
    first = some[0]
    # Raw heads of one stage write features first: (4 + classes, places).
    features_first = first.shape[-1] > 2 * first.shape[-2] and first.shape[-2] >= 5
    rows = np.concatenate([_table(each, features_first=features_first) for each in some])[:_READ_ROWS]
    width = rows.shape[1]
    if width < 4 or (width == 4 and not alone):
        return None
    at = _columns(rows, features_first=features_first)
    boxes = rows[:, at.box : at.box + 4]
    if not len(boxes) or not boxes.any():
        return None
    by_corners = float(((boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])).mean())
    by_size = float(((boxes[:, 2] >= 0) & (boxes[:, 3] >= 0)).mean())
    if by_corners < 0.95 and by_size < 0.95:
        return None
    return Form(**{**at.__dict__, "centred": by_corners < 0.95 or (features_first and by_size >= by_corners)})


def _table(values: Array, *, features_first: bool) -> Floats:
    table = np.nan_to_num(np.asarray(values, np.float64))
    table = np.moveaxis(table, -2, -1) if features_first else table
    return table.reshape(-1, table.shape[-1])


def _columns(rows: Floats, *, features_first: bool) -> Form:
    width = rows.shape[1]
    whole = [bool((rows[:, at] == np.round(rows[:, at])).all()) for at in range(width)]
    unit = [bool(((rows[:, at] >= 0) & (rows[:, at] <= 1)).all()) for at in range(width)]
    known = (
        (features_first, Form(scores_from=4, features_first=True)),
        (width == 4, Form()),
        (width == 5, Form(score=4)),
        (width == 6 and whole[4] and not whole[5], Form(score=5, label=4)),
        (width == 6 and whole[-1], Form(score=4, label=5)),
        (width == 7 and whole[1] and unit[2] and not whole[2], Form(box=3, score=2, label=1)),
        (width == 7 and whole[0] and whole[-2], Form(box=1, score=6, label=5)),
    )
    return next((form for holds, form in known if holds), Form(objectness=4, scores_from=5))


class Boxes(Comparison):
    """Counts on both sides the rows that have a counterpart on the other: F1 of the matches, per sample.

    `floor`: least score of the rows that count, None where the network has dropped the others itself.
    """

    def __init__(self, subject: Subject, form: Form, floor: float | None, slack: float) -> None:
        self._subject, self._form, self._floor, self._slack = subject, form, floor, slack
        self._matched: list[float] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        pairs = zip(detections(self._subject, self._form, original), detections(self._subject, self._form, compressed),
                    strict=True)  # fmt: skip
        self._matched += [self._f1(left, right) for left, right in pairs]

    def _f1(self, left: Detections, right: Detections) -> float:
        if left.scores is None and len(left.boxes) == len(right.boxes):
            # Nothing says which rows count, but each has its place.
            return float((_paired_iou(left.boxes, right.boxes) >= _LEAST_IOU).mean()) if len(left.boxes) else 1.0
        lost, wanted = self._found(left, right)
        made_up, given = self._found(right, left)
        return (lost + made_up) / (wanted + given) if wanted + given else 1.0

    def _found(self, rows: Detections, others: Detections) -> tuple[int, int]:
        """Give how many of the rows that count have a counterpart, one each, and how many count."""
        counted = self._best(rows, self._floor)
        # One that is just below the limit is no loss.
        candidates = self._best(others, None if self._floor is None else self._floor - self._slack)
        return matches(counted, candidates, self._slack), len(counted.boxes)

    def _best(self, rows: Detections, floor: float | None) -> Detections:
        if rows.scores is None:
            return rows.take(np.arange(min(len(rows.boxes), _MOST_ROWS)))
        order = np.argsort(-rows.scores, kind="stable")
        if floor is not None:
            order = order[rows.scores[order] >= floor]
        return rows.take(order[:_MOST_ROWS])

    def qualities(self) -> Iterator[Quality]:
        """Give the F1 of the matches."""
        yield closeness.share("box_f1", np.array(self._matched))


class Indices(Comparison):
    """Compares rows of integers, as NonMaxSuppression gives them: those that both networks name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._matched: list[float] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        for left, right in zip(original[self._name], compressed[self._name], strict=True):
            one, other = ({tuple(map(int, np.atleast_1d(row))) for row in each} for each in (left, right))
            count = len(one) + len(other)
            self._matched.append(2 * len(one & other) / count if count else 1.0)

    def qualities(self) -> Iterator[Quality]:
        """Give the F1 of the rows."""
        yield closeness.share("box_f1", np.array(self._matched))


def detections(subject: Subject, form: Form, batch: Batch) -> Iterator[Detections]:
    """Yield each sample's detections, scores and classes taken from the outputs that hold them."""
    roles: Mapping[str, str] = subject.companions or {}
    for index, rows in enumerate(batch[subject.name]):
        found = form.read(rows)
        scores, classes = found.scores, found.classes
        if "scores" in roles:
            given = np.nan_to_num(np.asarray(batch[roles["scores"]][index], np.float64))
            scores, best = _scores(given, len(found.boxes))
            classes = best if best is not None else classes
        if "labels" in roles:
            classes = np.asarray(batch[roles["labels"]][index], np.float64).reshape(-1)
        # Rows that one output has and another lacks are no detections.
        count = min(len(each) for each in (found.boxes, scores, classes) if each is not None)
        yield Detections(found.boxes, scores, classes).take(np.arange(count))


def _scores(given: Floats, rows: int) -> tuple[Floats, Floats | None]:
    """Read one score per row, or one per row and class: then the best one and its class."""
    if given.size == rows:
        return given.reshape(-1), None
    table = given.reshape(-1, given.shape[-1])
    # (classes, rows), as NonMaxSuppression wants them.
    table = table.T if len(table) != rows and table.shape[1] == rows else table
    return table.max(axis=1), table.argmax(axis=1).astype(np.float64)


def matches(left: Detections, right: Detections, slack: float) -> int:
    """Count the rows of `left`, best first, that find one of `right` which is not taken: same class, place and score."""
    if not len(left.boxes) or not len(right.boxes):
        return 0
    overlap = _iou(left.boxes, right.boxes)
    if left.classes is not None and right.classes is not None:
        overlap[left.classes[:, None] != right.classes[None, :]] = 0
    if left.scores is not None and right.scores is not None:
        overlap[np.abs(left.scores[:, None] - right.scores[None, :]) > slack] = 0
    found = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= _LEAST_IOU:
            found += 1
            overlap[:, best] = 0
    return found


def _iou(left: Floats, right: Floats) -> Floats:
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    return _over_union(common, _area(left)[:, None], _area(right)[None, :])


def _paired_iou(left: Floats, right: Floats) -> Floats:
    low, high = np.maximum(left[:, :2], right[:, :2]), np.minimum(left[:, 2:], right[:, 2:])
    return _over_union(np.prod(np.maximum(high - low, 0), axis=1), _area(left), _area(right))


def _area(boxes: Floats) -> Floats:
    area: Floats = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    return area


def _over_union(common: Floats, left: Floats, right: Floats) -> Floats:
    union = left + right - common
    # Two boxes without an area, as rows that are filled up have them, are alike.
    ratio: Floats = np.where(union > 0, common / np.where(union > 0, union, 1), 1.0)
    return ratio


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    some = list(islice(batches, _READ_BATCHES))
    if all(not metrics.is_float(each[subject.name]) for each in some):
        return lambda: Indices(subject.name)
    roles = subject.companions or {}
    rows = [sample for batch in some for sample in batch[subject.name]]
    form = recognise_form(rows, alone=True) or Form()
    if "scores" in roles:
        form = Form(form.box, form.centred)
    scores = [each.scores for batch in some for each in detections(subject, form, batch) if each.scores is not None]
    floor, slack = _limits(scores, rows_vary=subject.rows_vary)
    return lambda: Boxes(subject, form, floor, slack)


def _limits(scores: list[Floats], *, rows_vary: bool) -> tuple[float | None, float]:
    """Give the least score of rows that count, and by how much a score may differ."""
    together = np.concatenate(scores) if scores else np.zeros(0)
    if not together.size:
        return None, 0.0
    low, high = float(together.min()), float(together.max())
    unit = low >= 0 and high <= 1
    slack = _SCORE_SLACK * (1.0 if unit else high - low)
    if rows_vary:
        return None, slack
    if unit and int((together >= _LEAST_SCORE).sum()) >= len(scores):
        return _LEAST_SCORE, slack
    # No row is sure of itself: the best ones of each sample count.
    wanted = min(_ROWS_PER_SAMPLE * len(scores), together.size)
    floor = float(np.partition(together, together.size - wanted)[together.size - wanted])
    # A score that is always next to nothing may differ by next to nothing.
    return floor, min(slack, _SCORE_SLACK * max(high - low, 1e-12) * 3 if unit else slack)


BOXES = Kind(
    metrics=("box_f1",),
    floors=(
        Floor("box_f1", 0.9, "only {value} of the detections find their counterpart (F1 at an overlap of 0.75, same class,"
              " like score); {limit} have to", form=percent),
    ),
    read=_read,
)  # fmt: skip
