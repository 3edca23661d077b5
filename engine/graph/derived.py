"""Tensors that are computed from stored ones only when they are written, so that one at a time is in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Arrays = Sequence[npt.NDArray[Any]]
# Below this a stored tensor is simply read.
_STREAMED_BYTES = 1 << 20


@dataclass(frozen=True)
class Form:
    """What a derived tensor will be. Arrays of 4-bit types are given packed, two to a byte."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]


class Derivation:
    """Makes tensors out of others; remembers the results of the last source only, and each only until it is read."""

    def __init__(self) -> None:
        self._waiting: dict[str, ir.TensorProtocol] = {}

    def make(
        self, source: ir.TensorProtocol, compute: Callable[[npt.NDArray[Any]], Arrays], forms: Sequence[Form]
    ) -> list[ir.TensorProtocol]:
        """Give `compute(source)` as tensors of the given forms: at once from memory, later where the source is stored."""
        if not is_stored(source):
            return [tensor(array, form) for array, form in zip(compute(source.numpy()), forms, strict=True)]

        def later(form: Form) -> Callable[[], ir.TensorProtocol]:
            return lambda: self._take(form, source, compute, forms)

        return [ir.LazyTensor(later(form), form.dtype, ir.Shape(form.shape), name=form.name) for form in forms]

    def _take(
        self,
        form: Form,
        source: ir.TensorProtocol,
        compute: Callable[[npt.NDArray[Any]], Arrays],
        forms: Sequence[Form],
    ) -> ir.TensorProtocol:
        if form.name not in self._waiting:
            self._waiting.clear()
            with Opened(source) as array:
                results = compute(array)
                del array
            for made, result in zip(forms, results, strict=True):
                self._waiting[made.name] = tensor(result, made)
        return self._waiting.pop(form.name)


class Opened:
    """A stored tensor mapped into memory for the time of a `with` block; nothing may refer to the array after it."""

    def __init__(self, source: ir.TensorProtocol) -> None:
        self._source = source
        self._mapped: ir.ExternalTensor | None = None

    def __enter__(self) -> npt.NDArray[Any]:
        source = self._source
        if not isinstance(source, ir.ExternalTensor):
            return source.numpy()
        # A handle of our own: closing the model's would pull the memory from under whoever else reads it.
        self._mapped = ir.ExternalTensor(
            source.location,
            source.offset,
            source.length,
            source.dtype,
            shape=source.shape,
            name=source.name or "",
            base_dir=source.base_dir,
        )
        return self._mapped.numpy()

    def __exit__(self, kind: object, *_: object) -> None:
        # An error's traceback still holds the array; the memory then goes with it.
        if self._mapped is not None and kind is None:
            self._mapped.release()


def is_stored(source: ir.TensorProtocol) -> bool:
    """Say whether a tensor lies on disk and is large, so that it should not stay in memory."""
    return isinstance(source, ir.ExternalTensor | ir.LazyTensor) and source.nbytes >= _STREAMED_BYTES


def tensor(array: npt.NDArray[Any], form: Form) -> ir.TensorProtocol:
    """Wrap an array, packed where its type has 4 bits."""
    if form.dtype.bitwidth == 4:
        return ir.PackedTensor(np.ascontiguousarray(array).reshape(-1), form.dtype, shape=form.shape, name=form.name)
    return ir.Tensor(np.ascontiguousarray(array).reshape(form.shape), form.dtype, name=form.name)


def transposed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy a matrix transposed, a slab of rows at a time: twice as fast as at once, because reads stay near each other."""
    turned = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, len(array), 64):
        turned[:, start : start + 64] = array[start : start + 64].T
    return turned
