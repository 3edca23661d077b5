"""Make more of few samples: the teacher is asked anew what it says of what comes out, so no label is needed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.data.batches import Alone, sample_count

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

# Pixels that an image moves by at most where nothing is said, as a share of its shorter side.
_SHIFT = 1 / 14
# Samples of a batch that are mixed with another one.
_MIXED = 0.5
_MOST_CHANNELS = 4


@dataclass(frozen=True)
class Mixed:
    """How the samples of a batch were mixed: `share` of each is its own, the rest is that of sample `other`."""

    share: Array
    other: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch before teacher and student see it.

    Args:
        image: the input that holds images (samples, channels, height, width) or (samples, height, width, channels).
        shift: most pixels that an image moves by, its edge repeated.
        flip: mirror half of the images left to right.
        mix: inputs of numbers that are mixed with another sample's, all alike (Zhang et al. 2018, https://arxiv.org/abs/1710.09412;
            with a teacher that is asked anew: Beyer et al. 2022, https://arxiv.org/abs/2106.05237).
        noise: standard deviation of normal noise, as a share of the input's own.
    """

    image: str | None = None
    shift: int = 0
    flip: bool = False
    mix: tuple[str, ...] = ()
    noise: float = 0.0

    @classmethod
    def of(
        cls, feed: Feed, *, shift: int | None = None, flip: bool = False, mixup: bool | None = None, noise: float = 0.0
    ) -> Self:
        """Choose for a network by one of its feeds. None: what fits; only images are moved and mixed unasked."""
        floats = tuple(name for name, array in feed.items() if array.dtype.kind == "f" and array.ndim > 1)
        images = [name for name, array in feed.items() if array.ndim == 4 and array.dtype.kind in "fu"]
        image = images[0] if len(images) == 1 and not isinstance(feed, Alone) else None
        if image is not None and shift is None:
            height, width = _plane(feed[image].shape)
            shift = round(_SHIFT * min(feed[image].shape[height], feed[image].shape[width]))
        # All that a sample is made of has to be numbers that can be averaged.
        mixable = len(floats) == len(feed) and not isinstance(feed, Alone)
        mixes = mixable and (mixup or (mixup is None and image is not None))
        return cls(
            image=image,
            shift=shift or 0 if image is not None else 0,
            flip=flip and image is not None,
            mix=floats if mixes else (),
            noise=noise,
        )

    @property
    def active(self) -> bool:
        """Whether a batch is changed at all."""
        return bool(self.shift or self.flip or self.mix or self.noise)

    def declared(self) -> Iterator[str]:
        """Say what is done, for the report."""
        if self.shift:
            yield f"images shifted by up to {self.shift} pixels"
        if self.flip:
            yield "images mirrored left to right"
        if self.mix:
            yield "half of the samples mixed with another one"
        if self.noise:
            yield f"noise of {self.noise:g} standard deviations"

    def unmixed(self) -> Self:
        """Give the same without mixing."""
        return replace(self, mix=())

    def __call__(self, feed: Feed, random: np.random.Generator) -> tuple[Feed, Mixed | None]:
        """Change a batch; the same generator gives the same."""
        changed = dict(feed)
        if self.image is not None and (self.shift or self.flip):
            changed[self.image] = self._moved(feed[self.image], random)
        mixed = None
        if self.mix:
            mixed = _draw(sample_count(feed), random)
            changed |= {name: _mix(changed[name], mixed) for name in self.mix}
        if self.noise:
            changed |= {
                name: _noisy(array, self.noise, random) for name, array in changed.items() if array.dtype.kind == "f"
            }
        return (Alone(changed) if isinstance(feed, Alone) else changed), mixed

    def _moved(self, images: Array, random: np.random.Generator) -> Array:
        height, width = _plane(images.shape)
        down, right = random.integers(-self.shift, self.shift + 1, (2, len(images)))
        mirrored = random.random(len(images)) < 0.5 if self.flip else np.zeros(len(images), np.bool_)
        moved = np.empty_like(images)
        for index, image in enumerate(images):
            rows = np.clip(np.arange(image.shape[height - 1]) - down[index], 0, image.shape[height - 1] - 1)
            columns = np.clip(np.arange(image.shape[width - 1]) - right[index], 0, image.shape[width - 1] - 1)
            columns = columns[::-1] if mirrored[index] else columns
            moved[index] = image.take(rows, axis=height - 1).take(columns, axis=width - 1)
        return moved


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Give the axes of height and width; channels are the few on one side of them."""
    return (1, 2) if shape[3] <= _MOST_CHANNELS < shape[1] else (2, 3)


def _draw(count: int, random: np.random.Generator) -> Mixed:
    share = np.where(random.random(count) < _MIXED, random.random(count), 1.0)
    return Mixed(share, random.permutation(count))


def _mix(array: Array, mixed: Mixed) -> Array:
    share = mixed.share.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
    found: Array = share * array + (1 - share) * array[mixed.other]
    return found


def _noisy(array: Array, noise: float, random: np.random.Generator) -> Array:
    spread = float(array.std())
    noisy: Array = array + (noise * spread * random.standard_normal(array.shape)).astype(array.dtype)
    return noisy
