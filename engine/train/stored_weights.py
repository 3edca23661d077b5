"""Weights that a graph stores in 8 or 4 bits: in which form, on which grid, and how their integers are read and written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph.attributes import integer
from engine.graph.linear import STANDARD, is_constant, node_name
from engine.solve.pairs import PAIR_LIMIT, worst_integer_pairs

Array = npt.NDArray[Any]

# Codes of each type, and how many of a type that holds less.
_BOUNDS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Where so many integers are zero, they were made so: by pruning weights, or by kernels that read several columns at a time.
_SPARSE = 0.4
# Weights of so few bits cannot saturate any kernel.
_INT7 = 64
_DEPTH = 4


@dataclass(frozen=True)
class Grid:
    """Where one scale ends and the next one begins in the codes: along `axis`, every `block` places.

    `axis` None: one scale for all, or scales that broadcast as they are.
    """

    low: int
    high: int
    axis: int | None = None
    block: int = 1


@dataclass(frozen=True)
class StoredWeight:
    """Weights in few bits: codes, scales and zero points by the names of their initializers, and what restores them."""

    node: str
    op: str
    bits: int
    grid: Grid
    form: Literal["plain", "nbits"]
    codes: str
    scale: str
    zero: str | None
    # The value that holds the restored weights, and the nodes whose work that is, by their outputs; with `nbits` the product
    # restores them itself.
    restored: str
    restoring: tuple[str, ...]
    # Of the codes as they are trained: (outputs, inputs) with `nbits`, as they are stored otherwise.
    shape: tuple[int, ...]
    # How kernels pair weights that may not saturate: None where nothing keeps them from it.
    pairs: Literal["rows", "columns", "windows"] | None = None
    # Whether zeros stay zeros.
    sparse: bool = False

    def read_codes(self, model: ir.Model) -> npt.NDArray[np.int32]:
        """Give the codes in `shape`."""
        array = _array(model, self.codes)
        if self.form == "plain":
            return array.astype(np.int32)
        outputs, inputs = self.shape
        return _unpacked(array.reshape(outputs, -1), self.bits)[:, :inputs]

    def read_scale(self, model: ir.Model) -> npt.NDArray[np.float32]:
        """Give the scales as `grid` speaks of them."""
        array = _array(model, self.scale).astype(np.float32)
        return array.reshape(self.shape[0], -1) if self.form == "nbits" else array

    def read_zero(self, model: ir.Model) -> npt.NDArray[np.int32]:
        """Give the zero points in the shape of the scales."""
        scale = self.read_scale(model)
        if self.zero is None:
            return np.full(scale.shape, 1 << (self.bits - 1) if self.form == "nbits" else 0, np.int32)
        array = _array(model, self.zero)
        if self.form == "nbits":
            return _unpacked(array.reshape(self.shape[0], -1), self.bits)[:, : scale.shape[1]]
        return np.broadcast_to(array.astype(np.int32), scale.shape)

    def write(self, model: ir.Model, codes: npt.NDArray[np.int32], scale: npt.NDArray[np.float32]) -> None:
        """Store other codes and scales in the same form; what fills the last block stays as it is."""
        if self.form == "nbits":
            outputs, inputs = self.shape
            stored = _array(model, self.codes)
            every = _unpacked(stored.reshape(outputs, -1), self.bits)
            every[:, :inputs] = codes
            _store(model, self.codes, _packed(every, self.bits).reshape(stored.shape))
        else:
            _store(model, self.codes, codes)
        _store(model, self.scale, scale.reshape(_array(model, self.scale).shape))

    def rows(self, array: Array) -> Array:
        """Give an array of the codes' shape as (outputs, contracted) in the order in which kernels pair them.

        As `engine.quantize.kernel_order`: convolutions contract kernel position first, then input channel.
        """
        if self.pairs == "windows":
            array = np.moveaxis(array, 1, -1)
        return np.ascontiguousarray((array.T if self.pairs == "columns" else array).reshape(self.outputs, -1))

    @property
    def outputs(self) -> int:
        """Number of rows that `rows` gives."""
        return self.shape[1] if self.pairs == "columns" else self.shape[0]


def stored_weights(model: ir.Model) -> tuple[list[StoredWeight], dict[str, str]]:
    """List the weights of layers in the main graph that are stored in 8 or 4 bits, and by node why others are not trained."""
    found: list[StoredWeight] = []
    left: dict[str, str] = {}
    for node in model.graph:
        weight = _read(node)
        if weight is None:
            continue
        reason = _objection(node, weight, model)
        if reason is None:
            found.append(_as_made(weight, node, model))
        else:
            left[weight.node] = reason
    return found, left


def _read(node: ir.Node) -> StoredWeight | None:
    if node.op_type == "DequantizeLinear" and node.domain in STANDARD:
        return _dequantized(node)
    if node.op_type == "MatMulNBits":
        return _nbits(node)
    return _cast(node) if node.op_type == "Mul" and node.domain in STANDARD else None


def _dequantized(node: ir.Node) -> StoredWeight | None:
    codes, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if codes is None or scale is None or not is_constant(codes) or _kind(codes) not in _BOUNDS:
        return None
    shape, sizes = _shape(codes), _shape(scale) if is_constant(scale) else None
    axis = integer(node, "axis", 1) % max(len(shape), 1)
    block = integer(node, "block_size", 0)
    grid = _grid(codes, None if sizes in {(), (1,)} else axis, max(block, 1))
    return _stored([node], codes, scale, zero, grid)


def _cast(node: ir.Node) -> StoredWeight | None:
    """Read (Cast(codes) - Cast(zero)) * scale."""
    centred, scale = node.inputs[0], node.inputs[1]
    producer = None if centred is None else centred.producer()
    zero = None
    nodes = [node]
    if producer is not None and producer.op_type == "Sub":
        origin = None if producer.inputs[1] is None else producer.inputs[1].producer()
        if origin is None or origin.op_type != "Cast":
            return None
        zero = origin.inputs[0]
        nodes += [producer, origin]
        producer = None if producer.inputs[0] is None else producer.inputs[0].producer()
    codes = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if codes is None or scale is None or producer is None or not is_constant(codes) or _kind(codes) not in _BOUNDS:
        return None
    return _stored([*nodes, producer], codes, scale, zero, _grid(codes, None, 1))


def _nbits(node: ir.Node) -> StoredWeight | None:
    codes, scale = node.inputs[1], node.inputs[2]
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if codes is None or scale is None or not is_constant(codes):
        return None
    bits, inputs, outputs = integer(node, "bits", 4), integer(node, "K", 0), integer(node, "N", 0)
    grid = Grid(0, (1 << bits) - 1, 1, integer(node, "block_size", 32))
    return StoredWeight(
        node=node_name(node),
        op=node.op_type,
        bits=bits,
        grid=grid,
        form="nbits",
        codes=str(codes.name),
        scale=str(scale.name),
        zero=None if zero is None else str(zero.name),
        restored=f"{codes.name}_restored",
        restoring=(str(node.outputs[0].name),),
        shape=(outputs, inputs),
    )


def _stored(
    restoring: Sequence[ir.Node], codes: ir.Value, scale: ir.Value, zero: ir.Value | None, grid: Grid
) -> StoredWeight:
    node = restoring[0]
    reader = _reader(node.outputs[0])
    return StoredWeight(
        node=node_name(node if reader is None else reader),
        op=node.op_type if reader is None else reader.op_type,
        bits=4 if _kind(codes) in {ir.DataType.INT4, ir.DataType.UINT4} else 8,
        grid=grid,
        form="plain",
        codes=str(codes.name),
        scale=str(scale.name),
        zero=None if zero is None else str(zero.name),
        restored=str(node.outputs[0].name),
        restoring=tuple(str(each.outputs[0].name) for each in restoring),
        shape=_shape(codes),
    )


def _grid(codes: ir.Value, axis: int | None, block: int) -> Grid:
    low, high = _BOUNDS[cast("ir.DataType", _kind(codes))]
    return Grid(low, high, axis, block)


def _objection(node: ir.Node, weight: StoredWeight, model: ir.Model) -> str | None:
    """Say why weights are not trained."""
    constants = model.graph.initializers
    names = [weight.scale] if weight.zero is None else [weight.scale, weight.zero]
    if any(name not in constants or not is_constant(constants[name]) for name in names):
        return "its scales or zero points are not constant"
    if len(constants[weight.codes].uses()) > 1:
        return f"its weights, `{weight.codes}`, are shared with another node"
    if weight.form == "nbits":
        return _objection_to_blocks(node, weight, model)
    return None if weight.op in _LAYERS else f"{weight.op} reads them, which is no product"


def _objection_to_blocks(node: ir.Node, weight: StoredWeight, model: ir.Model) -> str | None:
    if weight.bits not in {4, 8}:
        return f"its weights have {weight.bits} bits; 4 and 8 can be trained"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "its blocks are out of order (g_idx)"
    if weight.zero is not None and _kind(model.graph.initializers[weight.zero]) != ir.DataType.UINT8:
        return "its zero points are not integers"
    return None


def _as_made(weight: StoredWeight, node: ir.Node, model: ir.Model) -> StoredWeight:
    """Say what else holds of the codes than what their type says, and has to hold of others."""
    sparse = float(is_zero(weight, model).mean()) >= _SPARSE
    return _bounded(replace(weight, sparse=sparse), node, model)


def is_zero(weight: StoredWeight, model: ir.Model) -> npt.NDArray[np.bool_]:
    """Tell which codes stand for zero."""
    zero, (axis, block) = weight.read_zero(model), (weight.grid.axis, weight.grid.block)
    codes = weight.read_codes(model)
    if axis is not None and zero.ndim == 1 and codes.ndim > 1:
        zero = zero.reshape([-1 if place == axis else 1 for place in range(codes.ndim)])
    elif axis is not None and block > 1:
        zero = np.repeat(zero, block, axis).take(np.arange(codes.shape[axis]), axis)
    found: npt.NDArray[np.bool_] = codes == zero
    return found


def _bounded(weight: StoredWeight, node: ir.Node, model: ir.Model) -> StoredWeight:
    """Narrow the codes to what the network's quantizer kept to, so that no kernel saturates that did not before."""
    if weight.form == "nbits" or weight.bits != 8 or model.graph.initializers[weight.codes].dtype != ir.DataType.INT8:
        return weight
    codes = weight.read_codes(model)
    if weight.read_zero(model).any():
        return weight
    largest = int(np.abs(codes).max(initial=0))
    if largest <= _INT7:
        return replace(weight, grid=replace(weight.grid, low=-_INT7, high=_INT7))
    low = -128 if int(codes.min()) == -128 else -127
    weight = replace(weight, grid=replace(weight.grid, low=low))
    reader = _reader(node.outputs[0])
    order = None if reader is None else _order(reader)
    if order is None or low == -128:
        return weight
    paired = replace(weight, pairs=order)
    worst = int(worst_integer_pairs(paired.rows(codes).astype(np.int8)).max(initial=0))
    return paired if worst <= PAIR_LIMIT else weight


def _order(reader: ir.Node) -> Literal["rows", "columns", "windows"] | None:
    if reader.op_type == "Conv":
        return "windows"
    if reader.op_type == "Gemm" and integer(reader, "transB", 0):
        return "rows"
    return "columns" if reader.op_type in {"Gemm", "MatMul"} else None


def _reader(value: ir.Value) -> ir.Node | None:
    """Give the only node that reads weights, through what gives them another shape."""
    for _ in range(_DEPTH):
        users = list(value.uses())
        if len(users) != 1 or value.is_graph_output():
            return None
        node = users[0].node
        if node.op_type not in {"Reshape", "Transpose", "Identity"}:
            return node
        value = node.outputs[0]
    return None


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _store(model: ir.Model, name: str, array: Array) -> None:
    value = model.graph.initializers[name]
    dtype = cast("ir.TensorProtocol", value.const_value).dtype
    small: Any = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4}.get(dtype)
    stored = array.astype(np.int8).astype(small) if small is not None else array.astype(dtype.numpy())
    value.const_value = ir.tensor(np.array(stored, order="C"), dtype=dtype, name=name)


def _unpacked(packed: Array, bits: int) -> npt.NDArray[np.int32]:
    """Give codes from bytes, (outputs, bytes) to (outputs, codes); of two in a byte the low one comes first."""
    if bits == 8:
        return packed.astype(np.int32)
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(len(packed), -1).astype(np.int32)


def _packed(codes: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return codes.astype(np.uint8)
    packed: npt.NDArray[np.uint8] = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    return packed


def _kind(value: ir.Value) -> ir.DataType | None:
    return None if value.const_value is None else value.const_value.dtype


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())
