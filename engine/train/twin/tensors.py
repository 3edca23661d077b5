"""Element types and arrays of ONNX as PyTorch holds them.

The twin computes 16-bit and 32-bit floats in one type, `floating`: networks in half precision are trained in single. Unsigned
integers of 16 bits and more take the next signed type, integers of 2 and 4 bits a byte each, for PyTorch computes with no others.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.errors import ModelUnsupportedError
from engine.train.framework import Tensor, torch

Array = npt.NDArray[Any]

_WORKING = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPES = {
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.UINT64: torch.int64,
}


def holds(kind: ir.DataType) -> bool:
    """Say whether the twin has a type for these elements."""
    return kind in _WORKING or kind in _TYPES


def torch_type(kind: ir.DataType, floating: Any) -> Any:
    """Give the type that holds these elements, or raise ModelUnsupportedError."""
    if kind in _WORKING:
        return floating
    found = _TYPES.get(kind)
    if found is None:
        raise ModelUnsupportedError(f"Elements of type {kind.name} cannot be trained through.")
    return found


def wrapped(tensor: Tensor, kind: ir.DataType | None) -> Tensor:
    """Keep of whole numbers the bits that their type in the network has, where the twin holds them in a wider one."""
    bits = None if kind is None else _HELD_WIDER.get(kind)
    if bits is None:
        return tensor
    low = tensor & ((1 << bits) - 1)
    if kind in _SIGNED:
        low = torch.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low


_HELD_WIDER = {
    ir.DataType.INT2: 2,
    ir.DataType.UINT2: 2,
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.UINT16: 16,
    ir.DataType.UINT32: 32,
}
_SIGNED = frozenset({ir.DataType.INT2, ir.DataType.INT4})


def to_torch(tensor: ir.TensorProtocol, floating: Any) -> Tensor:
    """Copy a tensor of a network."""
    return from_numpy(tensor.numpy(), torch_type(tensor.dtype, floating))


def from_numpy(array: Array, kind: Any) -> Tensor:
    """Copy an array into a tensor of a type; numpy's own types need not be PyTorch's."""
    if array.dtype.kind == "V" or array.dtype.name not in _PLAIN:
        array = array.astype(np.float32 if kind.is_floating_point else np.int64)
    with warnings.catch_warnings():
        # It is copied at once, so that nobody writes into an array that cannot be written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.require(array, requirements="C")).to(kind, copy=True)


_PLAIN = frozenset({"bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64"})


def to_numpy(tensor: Tensor) -> Array:
    """Copy a tensor to an array of its own type, in row-major order."""
    found: Array = np.array(tensor.detach().cpu().numpy(), order="C")
    return found
