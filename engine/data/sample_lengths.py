"""Samples that were filled up to one length: an array beside the inputs says how much of each sample counts."""

from collections.abc import Collection, Mapping, Sequence

from engine.errors import DatasetInvalidError
from engine.inspection import ArrayInfo, TensorInfo

# Behind an input's name and a line; alone, of all inputs that may vary in length.
_SUFFIXES = ("length", "lengths", "len", "lens")


def length_arrays(arrays: Collection[str], inputs: Sequence[TensorInfo]) -> dict[str, str]:
    """Give for each input that is cut the array that says where: `x_length` for `x`, `length` for all that are open there.

    An array that the network takes itself says nothing of the kind: then the network knows what counts.
    """
    names = {tensor.name for tensor in inputs}
    spare = [name for name in arrays if name not in names]
    general = next((name for name in spare if name in _SUFFIXES), None)
    found = {}
    for tensor in inputs:
        own = next((name for name in spare if any(name == f"{tensor.name}_{suffix}" for suffix in _SUFFIXES)), None)
        if own is not None:
            found[tensor.name] = own
        elif general is not None and _is_open(tensor):
            found[tensor.name] = general
    return found


def cut_arrays(arrays: Mapping[str, ArrayInfo], lengths: Mapping[str, str], samples: int) -> dict[str, ArrayInfo]:
    """Describe the arrays as they are fed: of varying length; raises DatasetInvalidError where the lengths are none."""
    found = dict(arrays)
    for name, by in lengths.items():
        if name not in arrays:
            continue
        array, length = arrays[name], arrays[by]
        _check(array, length, samples)
        found[name] = array.model_copy(update={"shape": (array.shape[0], None, *array.shape[2:])})
    return {name: array for name, array in found.items() if name not in lengths.values()}


def _check(array: ArrayInfo, length: ArrayInfo, samples: int) -> None:
    single = length.shape in {(samples,), (samples, 1)}
    if not single or "int" not in length.dtype:
        raise DatasetInvalidError(
            f"Array `{length.name}` is {length.dtype} {list(length.shape)}, not one whole number per sample.",
            hint=f"It says how much of each sample of `{array.name}` counts. Rename it if it is something else.",
        )
    size = array.shape[1] if len(array.shape) > 1 else 0
    low, high = length.low, length.high
    if size is None or (low is not None and high is not None and not (low >= 1 and high <= size)):
        raise DatasetInvalidError(
            f"Array `{length.name}` says how much of each sample of `{array.name}` counts, but goes from {low:.0f} to"
            f" {high:.0f}; `{array.name}` has {'sizes of its own' if size is None else f'1 to {size} positions'}."
        )


def _is_open(tensor: TensorInfo) -> bool:
    return tensor.shape is None or (len(tensor.shape) > 1 and not isinstance(tensor.shape[1], int))
