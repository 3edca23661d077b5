"""The order of samples: all of them once in an epoch, the same by seed, from any place on, unlike sizes apart."""

from itertools import islice

import numpy as np
import pytest

from engine.data.batches import Alone
from engine.data.containers import Varying
from engine.data.dataset import Samples
from engine.train.batches import Held, Place, Stream


@pytest.fixture
def samples(feeds_of):
    return feeds_of({"x": np.arange(40, dtype=np.float32).reshape(20, 2)})


def _epoch(stream, epoch):
    return [places for place, places in islice(stream.from_place(Place(epoch)), 40) if place.epoch == epoch]


def test_an_epoch_has_every_sample_once_but_for_what_fills_no_batch(samples):
    first, second = (np.concatenate(_epoch(Stream(samples, 5, seed=0), epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second)
    assert [len(each) for each in _epoch(Stream(samples, 6, seed=0), 0)] == [6, 6, 6]


def test_the_order_follows_from_the_seed_from_any_place_on(samples):
    whole = list(islice(Stream(samples, 5, seed=3).from_place(Place()), 10))
    rest = list(islice(Stream(samples, 5, seed=3).from_place(Place(1, 2)), 4))
    assert [place for place, _ in rest] == [place for place, _ in whole[6:]]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(rest, whole[6:], strict=True))
    assert not np.array_equal(whole[0][1], next(Stream(samples, 5, seed=4).from_place(Place()))[1])


def test_feeds_come_in_parts_with_their_places(samples):
    stream = Stream(samples, 8, seed=0)
    places = np.array([3, 1, 7, 19, 0])
    parts = list(stream.feeds(places, 2))
    assert [len(part) for part, _ in parts] == [2, 2, 1]
    for part, feed in parts:
        assert np.array_equal(feed["x"], np.arange(40, dtype=np.float32).reshape(20, 2)[part])


def test_a_fixed_batch_is_filled_up(samples):
    parts = list(Stream(samples, 8, seed=0, fixed=4).feeds(np.array([3, 1, 7, 19, 0]), 2))
    assert [(len(part), len(feed["x"])) for part, feed in parts] == [(4, 4), (1, 4)]


def test_samples_of_unlike_sizes_are_mostly_with_their_like():
    shapes = [(2 + index % 2,) for index in range(64)]
    varying = Varying(shapes, np.dtype(np.float32), lambda index: np.full(shapes[index], index, np.float32))
    samples = Samples({"x": varying}, {"x": np.dtype(np.float32)}, np.arange(64))
    stream = Stream(samples, 8, seed=0)
    parts = [feed for places in _epoch(stream, 0) for _, feed in stream.feeds(places, 8)]
    assert sum(len(feed["x"]) for feed in parts) == 64
    assert len(parts) <= 9
    assert sorted(np.concatenate([feed["x"][:, 0] for feed in parts])) == list(range(64))


def test_samples_without_random_access_are_held():
    class Plain:
        def __len__(self):
            return 6

        def batches(self, size):
            for at in range(0, 6, size):
                yield {"x": np.arange(at, min(at + size, 6))}

    stream = Stream(Plain(), 2, seed=0)
    ((_, feed),) = stream.feeds(np.array([5, 2]), 2)
    assert list(feed["x"]) == [5, 2]


def test_whole_inputs_stay_alone():
    held = Held([Alone({"x": np.full((1, 3), index)}) for index in range(3)])
    assert [int(feed["x"][0, 0]) for feed in held.subset(np.array([2, 0])).batches(8)] == [2, 0]
