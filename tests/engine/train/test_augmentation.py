"""What is done to a batch: it follows from the generator, moves images as a whole, and leaves everything else alone."""

import numpy as np
import pytest

from engine.data.batches import Alone
from engine.train.augmentation import Augmentation


@pytest.fixture
def batch():
    return {"image": np.random.default_rng(0).uniform(0, 255, (16, 3, 28, 28)).astype(np.float32)}


def test_images_are_shifted_and_mixed_unasked_and_texts_are_not(batch):
    found = Augmentation.of(batch)
    assert (found.shift, found.mix) == (2, ("image",))
    assert list(found.declared()) == ["images shifted by up to 2 pixels", "half of the samples mixed with another one"]
    texts = {"input_ids": np.zeros((4, 8), np.int64), "attention_mask": np.ones((4, 8), np.int64)}
    assert not Augmentation.of(texts, flip=True).active
    assert not Augmentation.of({"features": np.zeros((4, 8), np.float32)}).active


def test_nothing_is_done_where_nothing_is_wanted(batch):
    assert not Augmentation.of(batch, shift=0, mixup=False).active


def test_a_shift_moves_the_image_and_repeats_its_edge(batch):
    moved, mixed = Augmentation.of(batch, shift=3, mixup=False)(batch, np.random.default_rng(1))
    assert mixed is None
    seen = set()
    for before, after in zip(batch["image"], moved["image"], strict=True):
        padded = np.pad(before, ((0, 0), (3, 3), (3, 3)), mode="edge")
        places = [
            (y, x) for y in range(7) for x in range(7) if np.array_equal(padded[:, y : y + 28, x : x + 28], after)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 5


def test_channels_may_come_last():
    image = np.random.default_rng(0).uniform(size=(8, 20, 12, 3)).astype(np.float32)
    moved, _ = Augmentation.of({"x": image}, shift=0, flip=True, mixup=False)({"x": image}, np.random.default_rng(0))
    kinds = {
        "same" if np.array_equal(a, b) else "mirrored" if np.array_equal(a[:, ::-1], b) else "else"
        for a, b in zip(image, moved["x"], strict=True)
    }
    assert kinds == {"same", "mirrored"}


def test_mixing_says_what_it_mixed(batch):
    feed = {**batch, "other": np.random.default_rng(5).uniform(size=(16, 4)).astype(np.float32)}
    augmentation = Augmentation.of(feed, shift=0)
    changed, mixed = augmentation(feed, np.random.default_rng(2))
    assert set(augmentation.mix) == {"image", "other"}
    for name, array in feed.items():
        share = mixed.share.reshape(-1, *[1] * (array.ndim - 1))
        np.testing.assert_allclose(
            changed[name], share * array + (1 - share) * array[mixed.other], rtol=1e-4, atol=1e-4
        )
    assert 2 < (mixed.share < 1).sum() < 14


def test_the_same_generator_gives_the_same(batch):
    augmentation = Augmentation.of(batch, flip=True, noise=0.1)
    one, other, third = (augmentation(batch, np.random.default_rng(seed))[0]["image"] for seed in (7, 7, 8))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


def test_a_feed_that_is_one_whole_sample_stays_one():
    feed = Alone({"image": np.ones((1, 3, 28, 28), np.float32)})
    changed, _ = Augmentation.of(feed, noise=0.5)({**feed} and feed, np.random.default_rng(0))
    assert isinstance(changed, Alone)
