"""Which axis of an input counts samples, and whether samples must be fed alone."""

import numpy as np
import pytest

from engine.data.batches import Alone, are_alone, batch_axes, padded, run_size, sample_axes, sample_count, take, whole


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ({"image": ("n", 3, 8, 8)}, {"image": 0}),
        ({"image": (8, 3, 8, 8), "more": (8, 2)}, {"image": 0, "more": 0}),
        ({"ids": ("n", None), "scale": (1, 4)}, {"ids": 0, "scale": 0}),
        ({"x": (None, 512), "state": (2, None, 128), "rate": ()}, {"x": 0, "state": 1, "rate": None}),
        ({"x": ("batch", "t"), "h": (2, "layers", "batch", 64)}, {"x": 0, "h": 2}),
        ({"x": (1, 512), "h": (2, 1, 64)}, {"x": 0, "h": 1}),
        ({"x": ("n", 10), "anchors": (100, 4)}, {"x": 0, "anchors": None}),
        ({"x": None, "rate": ()}, {"x": 0, "rate": None}),
    ],
)
def test_the_batch_axis_is_found(shapes, axes):
    assert batch_axes(shapes) == axes
    assert are_alone(axes) == any(axis != 0 for axis in axes.values())


def test_an_array_with_one_axis_more_holds_whole_inputs():
    shapes = {"image": (3, 8, 8)}
    assert sample_axes(shapes, {"image": 3}) == {"image": 0}  # a fixed batch of 3
    assert sample_axes(shapes, {"image": 4}) == {"image": None}


def test_a_whole_sample_keeps_the_axes_that_the_network_wants():
    feed = whole(
        {"x": np.zeros(512), "state": np.zeros((2, 128)), "rate": np.array(16000)}, {"x": 0, "state": 1, "rate": None}
    )
    assert {name: array.shape for name, array in feed.items()} == {"x": (1, 512), "state": (2, 1, 128), "rate": ()}
    assert sample_count(feed) == 1
    assert take(feed, slice(4)) is feed
    assert padded(feed, 8) is feed


def test_batches_are_counted_cut_and_filled_up():
    feed = {"x": np.arange(6).reshape(3, 2), "y": np.arange(3)}
    assert sample_count(feed) == 3
    assert take(feed, np.array([True, False, True]))["y"].tolist() == [0, 2]
    assert padded(feed, 5)["y"].tolist() == [0, 1, 2, 2, 2]
    assert padded(feed, None) is feed


def test_samples_that_come_alone_are_run_one_at_a_time(feeds_of):
    batched = feeds_of({"x": np.zeros((4, 2))})
    assert run_size([("n", 2)], batched) is None
    assert run_size([(4, 2)], batched) == 4

    class Singles:
        def __len__(self):
            return 1

        def batches(self, size):
            del size
            yield Alone(x=np.zeros((4, 2)))

    assert run_size([(4, 2)], Singles()) == 1
