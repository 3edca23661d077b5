"""The two parts of the calibration samples: what passes fit to, and what they judge their own candidates on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine.layout import sample_count, take
from engine.passes.contract import Samples

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
