"""Samples of a dataset in an order that is drawn anew in each epoch, cut into batches; it follows from a seed alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.contract import Samples
from engine.data.batches import Alone, padded, sample_count

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Places = npt.NDArray[np.int64]

# Samples of unlike sizes are sorted within so many batches: most batches then hold equal ones, and the order stays random.
_SORTED_TOGETHER = 16


@runtime_checkable
class RandomAccess(Samples, Protocol):
    """Samples that can be had in any order."""

    def subset(self, places: Places) -> Samples:
        """Give some of them, in this order."""
        ...

    def alike(self) -> Places | None:
        """Give a number for each sample that only samples of equal shapes share; None: all have equal ones."""
        ...


class Held:
    """Feeds of one sample each, in memory."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = list(feeds)

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self._feeds)

    def subset(self, places: Places) -> "Held":
        """Give some of them, in this order."""
        return Held([self._feeds[place] for place in places])

    def alike(self) -> Places | None:
        """Give a number for each sample that only samples of equal shapes share."""
        shapes = [tuple((name, array.shape) for name, array in feed.items()) for feed in self._feeds]
        numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        return None if len(numbers) == 1 else np.array([numbers[shape] for shape in shapes], np.int64)

    def batches(self, size: int) -> Iterator[Feed]:
        """Yield them in order, `size` at a time; each whole input alone."""
        group: list[Feed] = []
        for feed in self._feeds:
            if isinstance(feed, Alone):
                yield feed
                continue
            if group and (len(group) == size or not _alike(group[0], feed)):
                yield _joined(group)
                group = []
            group.append(feed)
        if group:
            yield _joined(group)


def random_access(samples: Samples) -> RandomAccess:
    """Give samples in a form in which they can be had in any order; those that have none are read into memory."""
    if isinstance(samples, RandomAccess):
        return samples
    return Held(list(samples.batches(1)))


@dataclass(frozen=True, order=True)
class Place:
    """Where in the stream of batches a training is: the batch `number` of an epoch."""

    epoch: int = 0
    number: int = 0


class Stream:
    """Batches without end.

    Args:
        samples: what they are made of.
        size: samples in a batch.
        seed: what the order follows from.
        fixed: how many samples the network takes at a time and no other number; None: any.
    """

    def __init__(self, samples: Samples, size: int, seed: int, fixed: int | None = None) -> None:
        self._samples = random_access(samples)
        self._keys = self._samples.alike()
        self.size = min(size, len(samples))
        self._seed, self._fixed = seed, fixed

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self._samples)

    def from_place(self, place: Place) -> Iterator[tuple[Place, Places]]:
        """Yield from there on each batch's place and samples."""
        epoch, first = place.epoch, place.number
        while True:
            batches = self._epoch(epoch)
            for number in range(first, len(batches)):
                yield Place(epoch, number), batches[number]
            epoch, first = epoch + 1, 0

    def feeds(self, places: Places, most: int) -> Iterator[tuple[Places, Feed]]:
        """Yield some samples, at most so many at a time, each part with its places."""
        at = 0
        for feed in self._samples.subset(places).batches(self._fixed or most):
            count = sample_count(feed)
            yield places[at : at + count], padded(feed, self._fixed)
            at += count

    def _epoch(self, epoch: int) -> list[Places]:
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._samples)).astype(np.int64)
        if self._keys is not None:
            window = _SORTED_TOGETHER * self.size
            order = np.concatenate(
                [_sorted(order[at : at + window], self._keys) for at in range(0, len(order), window)]
            )
        whole = len(order) // self.size
        batches = [order[at * self.size : (at + 1) * self.size] for at in range(whole)]
        # What is left over comes in another epoch.
        return [batches[number] for number in random.permutation(whole)]


def _sorted(places: Places, keys: Places) -> Places:
    found: Places = places[np.argsort(keys[places], kind="stable")]
    return found


def _alike(one: Feed, other: Feed) -> bool:
    return all(one[name].shape[1:] == other[name].shape[1:] for name in one)


def _joined(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
