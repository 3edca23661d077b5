"""Scores of the next token at each position, or tokens and other numbers that were chosen: what counts is which ones."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine.measure import metrics
from engine.measure.intervals import Floats
from engine.measure.kinds import closeness
from engine.measure.kinds.classes import mean_over_positions, read_scores
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, percent
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array, Output
from engine.report.values import Quality


class Tokens(Comparison):
    """Compares the likeliest token at each position, and the distributions: exp(kl) is by how much perplexity grows."""

    def __init__(self, name: str, how: Output) -> None:
        self._name, self._how = name, how
        self._vectors = Vectors()
        self._agree: list[Floats] = []
        self._kl: list[Floats] = []

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch; sequences of another length by what it takes to make one of the other."""
        left, right = original[self._name], compressed[self._name]
        if not metrics.is_float(left):
            self._agree.append(_same_ids(left, right, valid))
            return
        self._vectors.add(left, right, valid)
        same = left.argmax(axis=-1) == right.argmax(axis=-1)
        self._agree.append(mean_over_positions(same.astype(np.float64), valid))
        self._kl.append(mean_over_positions(metrics.divergences(left, right, self._how), valid))

    def qualities(self) -> Iterator[Quality]:
        """Give the metrics that make sense for these tokens."""
        yield closeness.share("token_agreement", np.concatenate(self._agree))
        if self._kl:
            yield closeness.mean("kl", np.concatenate(self._kl))
        yield from self._vectors.qualities()


def _same_ids(left: Array, right: Array, valid: Array | None) -> Floats:
    if left.shape == right.shape:
        return mean_over_positions((left == right).astype(np.float64), valid)
    return np.array([_share_alike(one.ravel(), other.ravel()) for one, other in zip(left, right, strict=True)])


def _share_alike(left: Array, right: Array) -> float:
    # One that is missing shifts all that follow it, and changes none of them.
    longest = max(len(left), len(right))
    return 1 - metrics.levenshtein(left.tolist(), right.tolist()) / longest if longest else 1.0


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    first = next(iter(batches))[subject.name]
    how = read_scores(subject, batches) if metrics.is_float(first) else Output(probabilities=False)
    return lambda: Tokens(subject.name, how)


TOKENS = Kind(
    metrics=("token_agreement", "kl", "sqnr_db", "cosine"),
    floors=(
        Floor("token_agreement", 0.9, "what is chosen stays the same in only {value} of the positions; {limit} have to",
              form=percent),
        Floor("kl", 0.1, "the distribution of the next token moved by {value} nats; {limit} are allowed", at_least=False),
    ),
    read=_read,
)  # fmt: skip
