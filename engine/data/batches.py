"""How samples lie in a network's inputs: one behind the other on the first axis, or each fed as it is, alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.contract import Samples

    Array = npt.NDArray[Any]
else:
    # A web process checks data by these rules, and has no other use for numpy.
    Array = Any
Shape = Sequence[int | str | None]


class Alone(dict[str, Array]):
    """A feed that is one whole sample: its arrays are the network's inputs as they are, no axis counts samples."""


def batch_axes(shapes: Mapping[str, Shape | None]) -> dict[str, int | None]:
    """Give the axis of each input that counts samples; None where no axis can.

    It is the first one unless the inputs contradict each other: recurrent networks keep their state as (layers, samples,
    features) beside inputs (samples, steps). There it is the axis that has the name of another input's open first axis,
    else the first open one, else the first of size 1. A single number has none.
    """
    firsts = [shape[0] for shape in shapes.values() if shape]
    fixed = {size for size in firsts if isinstance(size, int)}
    agreed = fixed <= {1} or (len(fixed) == 1 and all(isinstance(size, int) for size in firsts))
    names = {size for size in firsts if isinstance(size, str)}
    return {
        name: 0 if shape is None or (shape and agreed) else _batch_axis(shape, names) for name, shape in shapes.items()
    }


def sample_axes(shapes: Mapping[str, Shape | None], ranks: Mapping[str, int]) -> dict[str, int | None]:
    """Give for arrays of these ranks, of which the first axis counts the samples, where that axis goes in each input.

    None: nowhere, because each sample is a whole input; its array then has one axis more than the input.
    """
    found = batch_axes(shapes)
    for name, shape in shapes.items():
        if shape is not None and ranks[name] == len(shape) + 1:
            found[name] = None
    return found


def are_alone(axes: Mapping[str, int | None]) -> bool:
    """Say whether samples have to be fed one at a time: not all inputs have them on the first axis."""
    return any(axis != 0 for axis in axes.values())


def whole(arrays: Mapping[str, Array], axes: Mapping[str, int | None]) -> Alone:
    """Make the feed of one sample from its arrays."""
    import numpy as np  # noqa: PLC0415  # see above

    return Alone(
        {
            # ascontiguousarray would give a single number an axis.
            name: np.require(array if axis is None else np.expand_dims(array, axis), requirements="C")
            for name, array, axis in ((name, array, axes[name]) for name, array in arrays.items())
        }
    )


def sample_count(feed: Mapping[str, Array]) -> int:
    """Give the number of samples in a feed."""
    return 1 if isinstance(feed, Alone) else len(next(iter(feed.values())))


def sample_bytes(feed: Mapping[str, Array]) -> int:
    """Give the bytes of one sample's inputs, of a feed of any number."""
    return sum(int(array.nbytes) for array in feed.values()) // max(sample_count(feed), 1)


def take(feed: Mapping[str, Array], chosen: Any) -> Mapping[str, Array]:
    """Give some samples of a feed: a slice, or a mask that is not all false."""
    return feed if isinstance(feed, Alone) else {name: array[chosen] for name, array in feed.items()}


def padded(feed: Mapping[str, Array], size: int | None) -> Mapping[str, Array]:
    """Repeat the last sample until the batch has the size that a network fixes."""
    missing = (size or 0) - sample_count(feed)
    if missing <= 0 or isinstance(feed, Alone):
        return feed
    import numpy as np  # noqa: PLC0415  # see above

    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}


def run_size(shapes: Sequence[Shape | None], samples: "Samples | None") -> int | None:
    """Give how many samples a network with these inputs takes at a time; None: any number.

    Samples may know better (`fixed`), where a network was seen to take no other number.
    """
    known: int | None = getattr(samples, "fixed", None)
    if known is not None:
        return known
    if samples is not None and isinstance(next(iter(samples.batches(1)), None), Alone):
        return 1
    return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)


def _batch_axis(shape: Shape, names: set[str]) -> int | None:
    def first(sizes: Sequence[bool]) -> int | None:
        return next((axis for axis, fits in enumerate(sizes) if fits), None)

    if not shape:
        return None
    if not isinstance(shape[0], int) or shape[0] == 1:
        return 0
    named = first([size in names for size in shape])
    if named is not None:
        return named
    opened = first([not isinstance(size, int) for size in shape])
    return opened if opened is not None else first([size == 1 for size in shape])
