"""Some of more samples: the first ones, or every fifth of them and the others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine.contract import Samples
from engine.data.batches import sample_count, take

# One in so many is held out.
EVERY = 5


@dataclass(frozen=True)
class Part:
    """Every fifth of the samples, or the others; by runs of `run` samples where a network fixes its batch size."""

    samples: Samples
    held_out: bool
    run: int = 1

    def __len__(self) -> int:
        """Give the number of samples."""
        return int(self._chosen(0, len(self.samples)).sum())

    def batches(self, size: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield feeds of at most `size` samples, in order."""
        # Whole runs of a fixed size come through in one piece.
        wanted = size if self.run > 1 else size * EVERY if self.held_out else size
        start = 0
        for feed in self.samples.batches(wanted):
            length = sample_count(feed)
            chosen = self._chosen(start, length)
            start += length
            if chosen.all():
                yield feed
            elif chosen.any():
                yield take(feed, chosen)

    def _chosen(self, start: int, count: int) -> np.ndarray:
        last = (np.arange(start, start + count) // self.run) % EVERY == EVERY - 1
        return np.asarray(last if self.held_out else ~last)


class First:
    """At most `most` samples, in the order of all."""

    def __init__(self, samples: Samples, most: int) -> None:
        self._samples = samples
        self._most = most

    def __len__(self) -> int:
        """Give the number of samples."""
        return min(len(self._samples), self._most)

    def batches(self, size: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the samples, `size` at a time; the last batch may be smaller."""
        left = len(self)
        for feed in self._samples.batches(size):
            if left <= 0:
                return
            yield take(feed, slice(left))
            left -= sample_count(feed)
