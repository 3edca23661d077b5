"""Some of more samples: the first ones."""

from collections.abc import Iterator, Mapping

import numpy as np

from engine.contract import Samples
from engine.data.batches import sample_count, take


class First:
    """At most `most` samples, in the order of all."""

    def __init__(self, samples: Samples, most: int) -> None:
        self._samples = samples
        self._most = most

    def __len__(self) -> int:
        """Give the number of samples."""
        return min(len(self._samples), self._most)

    @property
    def fixed(self) -> int | None:
        """Give how many the network takes at a time, where all samples know it."""
        found: int | None = getattr(self._samples, "fixed", None)
        return found

    def batches(self, size: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the samples, `size` at a time; the last batch may be smaller."""
        left = len(self)
        for feed in self._samples.batches(size):
            if left <= 0:
                return
            yield take(feed, slice(left))
            left -= sample_count(feed)
