"""Vectors that stand for their sample: what counts is their direction, and which other samples are nearest."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array
from engine.report.values import Quality

# Vectors that are kept to look for neighbours among them, and the bytes that they may take.
_MOST_KEPT = 1000
_MOST_KEPT_BYTES = 32 << 20
_NEIGHBOURS = 10
_FEWEST = 4


class Embedding(Comparison):
    """Compares vectors (samples, ..., width) by angle at each position, and by the neighbours of their means."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._vectors = Vectors()
        self._cosine: list[Floats] = []
        self._kept: tuple[list[Floats], list[Floats]] = ([], [])
        self._count = 0

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        left, right = original[self._name], compressed[self._name]
        self._vectors.add(left, right, valid)
        shape = (len(left), -1, left.shape[-1]) if left.ndim > 1 else (len(left), 1, 1)
        one, other = (np.nan_to_num(np.asarray(each, np.float64)).reshape(shape) for each in (left, right))
        counted = np.ones(one.shape[:2]) if valid is None or valid.shape != one.shape[:2] else valid.astype(np.float64)
        total = np.maximum(counted.sum(axis=1), 1)
        angles = metrics.cosines(one.reshape(-1, one.shape[-1]), other.reshape(-1, one.shape[-1]))
        self._cosine.append((angles.reshape(counted.shape) * counted).sum(axis=1) / total)
        self._keep(*((each * counted[..., None]).sum(axis=1) / total[:, None] for each in (one, other)))

    def _keep(self, left: Floats, right: Floats) -> None:
        room = min(_MOST_KEPT, _MOST_KEPT_BYTES // max(left[0].nbytes, 1)) - self._count
        if room > 0:
            for kept, vectors in zip(self._kept, (left, right), strict=True):
                kept.append(vectors[:room])
            self._count += len(left[:room])

    def qualities(self) -> Iterator[Quality]:
        """Give the metrics of vectors; neighbours where there are samples enough."""
        yield closeness.mean("cosine", np.concatenate(self._cosine))
        if self._count >= _FEWEST:
            kept = [_normalised(np.concatenate(each)) for each in self._kept]
            yield closeness.share("neighbours", shared_neighbours(*kept))
        yield next(self._vectors.qualities())


def shared_neighbours(left: Floats, right: Floats) -> Floats:
    """Give for each of n unit vectors the share of its nearest ones, of at most ten and a third of all, that stay nearest."""
    count = max(1, min(_NEIGHBOURS, (len(left) - 1) // 3))
    near = [_nearest(vectors, count) for vectors in (left, right)]
    return np.array([len(np.intersect1d(one, other)) / count for one, other in zip(*near, strict=True)])


def _nearest(vectors: Floats, count: int) -> Array:
    angles = vectors @ vectors.T
    np.fill_diagonal(angles, -np.inf)
    return np.argsort(-angles, axis=1, kind="stable")[:, :count]


def _normalised(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    del batches
    return lambda: Embedding(subject.name)


EMBEDDING = Kind(
    metrics=("cosine", "neighbours", "sqnr_db"),
    floors=(
        Floor("cosine", 0.98, "the mean cosine to the original's vectors is {value}; at least {limit} is required",
              form="{:.3f}".format),
        Floor("neighbours", 0.7, "only {value} of the nearest neighbours among the samples stay; {limit} have to",
              form=percent),
    ),
    read=_read,
)  # fmt: skip
