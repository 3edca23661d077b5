"""Arrays for the inputs of a decoder that a dataset of tokens does not hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.data.containers import Varying
from engine.data.decoder_inputs import follow, past_axis, role, tokens_input
from engine.inspection import TensorInfo

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def completed(arrays: Mapping[str, Array | Varying], inputs: Sequence[TensorInfo]) -> dict[str, Array | Varying]:
    """Add what follows from the tokens: all of them are seen, they stand behind what is in the cache, and that is empty.

    Where the cache is given, its length counts; where a mask is given, positions count what it shows. The first axis of all
    arrays counts the samples.
    """
    missing = follow(inputs, arrays.keys())
    found = dict(arrays)
    if not missing:
        return found
    by_name = {tensor.name: tensor for tensor in inputs}
    tokens = tokens_input(inputs)
    assert tokens is not None
    texts, before = arrays[tokens.name], _in_cache(arrays, by_name)
    mask = next((arrays[name] for name in arrays if name in by_name and role(by_name[name]) == "mask"), None)
    for name in missing:
        kind = role(by_name[name])
        if kind == "past":
            found[name] = _empty(by_name[name], len(texts))
        elif kind == "mask":
            found[name] = _alike(texts, lambda shape: np.ones(shape, np.int64), longer=before)
        else:
            found[name] = _positions(texts, before, mask)
    return found


def _in_cache(arrays: Mapping[str, Array | Varying], inputs: Mapping[str, TensorInfo]) -> int:
    """Give how many positions a given cache holds, where it holds as many for all samples."""
    for name, array in arrays.items():
        axis = past_axis(inputs[name]) if name in inputs else None
        if axis is not None and isinstance(array, np.ndarray):
            return int(array.shape[axis])
    return 0


def _empty(tensor: TensorInfo, samples: int) -> Array:
    axis = past_axis(tensor)
    sizes = [0 if at == axis else size for at, size in enumerate(tensor.shape or ())]
    return np.zeros((samples, *(int(size or 0) for size in sizes[1:])), np.float32)


def _positions(texts: Array | Varying, before: int, mask: Array | Varying | None) -> Array | Varying:
    if isinstance(mask, np.ndarray) and isinstance(texts, np.ndarray):
        counted = np.cumsum(mask, axis=1, dtype=np.int64) - 1
        return np.maximum(counted, 0)[:, -texts.shape[1] :]
    return _alike(texts, lambda shape: np.broadcast_to(np.arange(before, before + shape[-1]), shape))


def _alike(texts: Array | Varying, make: Callable[[Shape], Array], *, longer: int = 0) -> Array | Varying:
    """Make something of each text's length, or of one that is `longer` by some positions."""

    def stretched(shape: Shape) -> Shape:
        return (*shape[:-1], shape[-1] + longer)

    if not isinstance(texts, Varying):
        return make(stretched(texts.shape))
    shapes = [stretched(shape) for shape in texts.shapes]
    return Varying(shapes, make(shapes[0]).dtype, lambda index: make(shapes[index]))
