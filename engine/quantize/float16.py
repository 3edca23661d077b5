"""16-bit floats: only as stored weights, or for whatever operators compute in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import Range
from engine.contract import Context, Observe
from engine.errors import VerificationFailedError
from engine.graph import dtypes, io
from engine.graph.derived import Derivation, Form, is_stored
from engine.graph.linear import node_name
from engine.graph.names import require_nodes
from engine.graph.quantized import first_quantized, is_quantized
from engine.quantize.half_convolutions import suit_cuda
from engine.report.detail_parts import LeftAlone, counted, left_alone
from engine.report.quantization_details import Float16Details
from engine.report.values import Change, Refusal

_KIND = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_HALVES = frozenset(_KIND.values())
_LARGEST = 65504.0
# Below this float16 has fewer than its 11 bits of precision, and soon none.
_SMALLEST_NORMAL = 6.1e-5
# Numbers that only mean "minus infinity": masks. They become one that survives sums with ordinary numbers.
_SENTINEL, _HALF_SENTINEL = 1e30, 3e4
_STORED_WEIGHTS = 256
# Their types are stated by attributes, are tied in ways of their own, or must not move.
_STAYS = frozenset({"Bernoulli", "CastLike", "Constant", "EyeLike", "Multinomial"})
_SIZE_ARITHMETIC = frozenset(
    {
        "Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Gather", "Mul", "Reshape", "Round", "Slice", "Squeeze", "Sub",
        "Unsqueeze",
    }
)  # fmt: skip
_RESIZE_ROI_OPSET = 11
_STAYS_LIKE = ("Random", "Sequence", "Optional", "ConcatFromSequence", "SplitToSequence")
# What commonly follows the addition of an epsilon: the sum may be as small as the epsilon itself.
_AFTER_EPSILON = frozenset({"Sqrt", "Pow", "Reciprocal", "Div", "Log"})


@dataclass(frozen=True)
class Float16Settings:
    """How to use 16-bit floats."""

    dtype: Literal["float16", "bfloat16"]
    compute: Literal["auto", "half", "float32"]
    # Whether inputs and outputs of the network stay float32.
    keep_io: bool
    # Values so many times larger than any that was seen must still fit.
    margin: float
    # Names of nodes that stay in float32.
    exclude: tuple[str, ...]


def check(model: ir.Model, settings: Float16Settings) -> Refusal | None:
    """Refuse a network that has nothing to convert, or whose types are not known."""
    require_nodes(model, settings.exclude)
    sizes = dict.fromkeys((ir.DataType.FLOAT, *_HALVES), 0)
    for _, value in io.initializers(model):
        if value.const_value is not None and value.const_value.dtype in sizes:
            sizes[value.const_value.dtype] += value.const_value.size
    halves = sum(sizes[kind] for kind in _HALVES)
    if halves > sizes[ir.DataType.FLOAT] or (halves and sizes[ir.DataType.FLOAT] < _STORED_WEIGHTS):
        return Refusal(code="already_done", reason="Most weights are 16-bit floats already.")
    if sizes[ir.DataType.FLOAT] < _STORED_WEIGHTS:
        return Refusal(code="not_applicable", reason="The network has next to no float32 weights.")
    return None


def observes(model: ir.Model, settings: Float16Settings) -> Sequence[Observe]:
    """Ask for the range of every float32 activation of the main graph, where 16 bits may be computed in."""
    if settings.compute == "float32" or settings.dtype == "bfloat16":
        return ()
    types, _ = dtypes.infer(model)
    return [
        Observe(str(value.name))
        for node in model.graph
        for value in node.outputs
        if value.name and types.get(value) == ir.DataType.FLOAT and (value.uses() or value.is_graph_output())
    ]


def convert(
    model: ir.Model, settings: Float16Settings, observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Convert in place."""
    half = settings.compute == "half" or (
        settings.compute == "auto" and context.target.provider not in {"cpu", "openvino"}
    )
    if not half:
        return _store(model, settings)
    types, unknown = dtypes.infer(model)
    if unknown is not None:
        return Refusal(
            code="unsupported",
            reason=f"The type of what {unknown.op_type} gives is not known, so it cannot be told what may become 16-bit.",
            node=unknown.name,
            hint="Ask for compute float32: that stores weights in 16 bits and leaves all operators alone.",
        )
    quantized = first_quantized(model)
    if quantized is not None:
        return Refusal(
            code="unsupported",
            reason=f"The network holds {quantized.op_type}: quantized operators keep their float32 scales.",
            node=quantized.name,
            hint="Run float16 alone, or ask for compute float32.",
        )
    ranges = {request.tensor: cast("Range", result) for request, result in observations.items()}
    change = _Converter(model, settings, types, ranges).run()
    if isinstance(change, Refusal) or context.target.provider != "cuda":
        return change
    rewritten = suit_cuda(model, context.target.batch)
    if not rewritten:
        return change
    told = f"{change.summary.rstrip('.')}. For the GPU's kernels, {', '.join(rewritten)}."
    return change.model_copy(update={"summary": told})


def to_half(array: npt.NDArray[Any], kind: ir.DataType, name: str) -> npt.NDArray[Any]:
    """Round float32 numbers to 16 bits; mask constants become the largest that adds up safely, others must fit."""
    if kind == ir.DataType.BFLOAT16:
        return array.astype(ml_dtypes.bfloat16)
    finite = np.isfinite(array)
    masks = finite & (np.abs(array) >= _SENTINEL)
    if masks.any():
        array = np.where(masks, np.sign(array) * np.float32(_HALF_SENTINEL), array)
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if (np.isinf(rounded) & finite).any():
        raise VerificationFailedError(f"The weights `{name}` hold numbers beyond the range of float16.")
    return rounded


def _store(model: ir.Model, settings: Float16Settings) -> Change | Refusal:
    """Store large weights in 16 bits and widen them where they are used."""
    kind, derivation, taken = _KIND[settings.dtype], Derivation(), io.value_names(model)
    before = after = casts = 0
    stays: dict[str, str] = {}
    done = 0
    for graph, value in list(io.initializers(model)):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _STORED_WEIGHTS or not value.uses():
            continue
        reason = next(_storage_objections(value, settings), None)
        if reason is not None:
            stays[str(value.name)] = reason
            continue
        stored = _narrowed(value, kind, derivation, io.unused_name(taken, f"{value.name}_{settings.dtype}_"))
        graph.register_initializer(stored)
        casts += _widen(graph, value, stored, taken)
        graph.initializers.pop(str(value.name))
        before += tensor.nbytes
        after += tensor.nbytes // 2
        done += 1
    if not done:
        return Refusal(
            code="not_applicable",
            reason="No weights can be stored in 16 bits" + (f": {next(iter(stays.values()))}." if stays else "."),
        )
    return Change(
        summary=f"{counted(done, 'weight')} {'is' if done == 1 else 'are'} stored as {settings.dtype} and widened to float32 when the"
        " network is loaded.",
        details=Float16Details(
            dtype=settings.dtype,
            compute="float32",
            overflow_checked=True,
            casts=casts,
            weight_bytes_before=before,
            weight_bytes_after=after,
            in_float32=left_alone(stays),
        ),
    )


def _storage_objections(value: ir.Value, settings: Float16Settings) -> Iterator[str]:
    if value.is_graph_input() or value.is_graph_output():
        yield "it is an input or output of the network"
    for use in value.uses():
        if is_quantized(use.node.op_type):
            yield f"{use.node.op_type} reads it as scales"
        if use.node.name in settings.exclude:
            yield "the recipe excludes its node"
    tensor = cast("ir.TensorProtocol", value.const_value)
    if settings.dtype == "float16" and not is_stored(tensor):
        array = tensor.numpy()
        if (np.abs(array[np.isfinite(array)]) > _LARGEST).any():
            yield "it holds numbers beyond the range of float16"


def _narrowed(value: ir.Value, kind: ir.DataType, derivation: Derivation, name: str) -> ir.Value:
    tensor = cast("ir.TensorProtocol", value.const_value)
    shape = tuple(int(size) for size in tensor.shape.numpy())
    (made,) = derivation.make(tensor, lambda array: [to_half(array, kind, str(value.name))], [Form(name, kind, shape)])
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=made)


def _widen(graph: ir.Graph, value: ir.Value, stored: ir.Value, taken: set[str]) -> int:
    """Let every reader get float32: rows of a table after they were picked, all others before; count the casts."""
    casts = 0
    for node, index in tuple(value.uses()):
        if node.op_type == "Gather" and index == 0 and node.domain in {"", "ai.onnx"} and stored is not node.inputs[1]:
            output = node.outputs[0]
            picked = ir.Node("", "Gather", [stored, node.inputs[1]], node.attributes.values(), name=node.name)
            picked.outputs[0].name = io.unused_name(taken, f"{output.name}_narrow_")
            wide = _cast(picked.outputs[0], ir.DataType.FLOAT, taken)
            ir.convenience.replace_nodes_and_values(
                cast("ir.Graph", node.graph), node, [node], [picked, wide], [output], wide.outputs
            )
            casts += 1
    uses = tuple(value.uses())
    if uses:
        wide = _cast(stored, ir.DataType.FLOAT, taken)
        wide.outputs[0].shape = value.shape
        graph.insert_before(graph[0], [wide])
        for node, index in uses:
            node.replace_input_with(index, wide.outputs[0])
    return casts + bool(uses)


def _cast(value: ir.Value, kind: ir.DataType, taken: set[str]) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))], num_outputs=1)
    node.outputs[0].name = io.unused_name(taken, f"{value.name}_{kind.name.lower()}_")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
    node.name = node.outputs[0].name
    return node


class _Converter:
    """Lets a network compute in 16 bits. Nodes are chosen first; then casts go wherever two neighbours disagree."""

    def __init__(
        self,
        model: ir.Model,
        settings: Float16Settings,
        types: dict[ir.Value, ir.DataType],
        ranges: Mapping[str, Range],
    ) -> None:
        self._model, self._settings, self._types, self._ranges = model, settings, types, ranges
        self._kind = _KIND[settings.dtype]
        self._half_name = f"tensor({settings.dtype})"
        self._opset = io.opset(model)
        self._taken = io.value_names(model)
        self._derivation = Derivation()
        self._owner = {value: graph for graph, value in io.initializers(model)}
        # The type that a float32 tensor of the given network has now.
        self._now: dict[ir.Value, ir.DataType] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType, ir.Graph], ir.Value] = {}
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._stays: dict[ir.Node, str] = {}
        self._halves = 0

    def run(self) -> Change | Refusal:
        before = io.weight_bytes(self._model)
        self._lift_constants()
        for node in list(self._model.graph.all_nodes()):
            reason = next(self._objections(node), None)
            if reason is not None:
                self._stay(node, reason)
            self._protect_sizes(node)
        self._graph(self._model.graph, keep=self._settings.keep_io)
        for value in self._narrow:
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                self._owner[value].initializers.pop(str(value.name))
        if not self._halves:
            node, reason = next(iter(self._stays.items()))
            return Refusal(
                code="not_applicable",
                reason=f"No node can compute in {self._settings.dtype}: {reason}.",
                node=node.name,
            )
        floats = [(node, reason) for node, reason in self._stays.items() if not dtypes.bodies(node)]
        return Change(
            summary=f"{self._halves} nodes compute in {self._settings.dtype}; {len(floats)} stay in float32 for a reason of their own.",
            details=Float16Details(
                dtype=self._settings.dtype,
                compute="half",
                overflow_checked=bool(self._ranges) or self._settings.dtype == "bfloat16",
                casts=len(self._casts),
                weight_bytes_before=before,
                weight_bytes_after=io.weight_bytes(self._model),
                in_float32=tuple(LeftAlone(node=node_name(node), reason=reason) for node, reason in floats),
            ),
        )

    # Which nodes

    def _lift_constants(self) -> None:
        """Turn float32 Constant nodes into initializers: each reader can then have the type that it needs, unrounded."""
        for node in list(self._model.graph.all_nodes()):
            output = node.outputs[0]
            if node.op_type != "Constant" or self._types.get(output) != ir.DataType.FLOAT or output.is_graph_output():
                continue
            tensor = ir.convenience.get_const_tensor(output)
            if tensor is None:
                continue
            graph = cast("ir.Graph", node.graph)
            lifted = ir.Value(name=output.name, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
            lifted.shape = ir.Shape(tensor.shape.numpy())
            output.replace_all_uses_with(lifted)
            graph.remove(node, safe=True)
            graph.register_initializer(lifted)
            self._types[lifted] = ir.DataType.FLOAT
            self._owner[lifted] = graph

    def _protect_sizes(self, node: ir.Node) -> None:
        """Keep the arithmetic in float32 that becomes sizes: float16 counts exactly to 2048 only."""
        to_integer = node.op_type == "Cast" and self._types.get(node.outputs[0]) != ir.DataType.FLOAT
        names = {"Resize": (2,) if self._opset >= _RESIZE_ROI_OPSET else (1,), "Upsample": (1,), "Range": (0, 1, 2)}
        waiting = [node.inputs[index] for index in names.get(node.op_type, ()) if index < len(node.inputs)]
        if to_integer:
            waiting.append(node.inputs[0])
        while waiting:
            value = waiting.pop()
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in _SIZE_ARITHMETIC or producer in self._stays:
                continue
            if self._types.get(producer.outputs[0]) == ir.DataType.FLOAT:
                self._stay(producer, "its result becomes a size or an index")
                waiting.extend(producer.inputs)

    def _stay(self, node: ir.Node, reason: str) -> None:
        self._stays.setdefault(node, reason)

    def _objections(self, node: ir.Node) -> Iterator[str]:
        inputs = [value for value in node.inputs if value is not None and self._types.get(value) == ir.DataType.FLOAT]
        outputs = [value for value in node.outputs if self._types.get(value) == ir.DataType.FLOAT]
        if not inputs and not outputs:
            return
        if node.name in self._settings.exclude:
            yield "the recipe excludes it"
        if dtypes.bodies(node):
            yield "what goes into and out of the body of If, Loop or Scan stays float32; the body is converted"
        if node.op_type in _STAYS or node.op_type.startswith(_STAYS_LIKE):
            yield f"the type of {node.op_type} is stated elsewhere"
        if not self._knows_half(node):
            yield f"{node.op_type} of operator set {self._opset} knows no {self._settings.dtype}"
        if self._kind == ir.DataType.FLOAT16:
            yield from self._overflows(inputs, outputs)
            yield from self._underflows(node, inputs)

    def _knows_half(self, node: ir.Node) -> bool:
        """Say whether every float32 that the schema lets vary may be 16-bit, and something may vary at all."""
        known = dtypes.slots(node, self._opset)
        if known is None:
            return False
        varying = [
            types
            for value, types in (
                *zip(node.inputs, known.inputs, strict=True),
                *zip(node.outputs, known.outputs, strict=True),
            )
            if value is not None and self._types.get(value) == ir.DataType.FLOAT and len(types) > 1
        ]
        return bool(varying) and all(self._half_name in types or self._is_statistic(types) for types in varying)

    @staticmethod
    def _is_statistic(types: frozenset[str]) -> bool:
        """Say whether a slot is a by-product that is float32 whatever the data are: mean and deviation of a normalisation."""
        return types <= {"tensor(float)", "tensor(bfloat16)"}

    def _overflows(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Iterator[str]:
        for value in (*inputs, *outputs):
            seen = self._ranges.get(str(value.name))
            if seen is not None and max(-seen.low, seen.high) * self._settings.margin > _LARGEST:
                largest = max(-seen.low, seen.high)
                yield f"`{value.name}` reached {largest:.4g} on the calibration data, and float16 ends at {_LARGEST:.0f}"
        for value in inputs:
            tensor = value.const_value if value.is_initializer() else None
            if tensor is None or is_stored(tensor):
                continue
            sizes = np.abs(tensor.numpy())
            sizes = sizes[np.isfinite(sizes) & (sizes < _SENTINEL)]
            if sizes.size and float(sizes.max()) > _LARGEST:
                yield f"`{value.name}` holds {float(sizes.max()):.4g}, and float16 ends at {_LARGEST:.0f}"

    def _underflows(self, node: ir.Node, inputs: Sequence[ir.Value]) -> Iterator[str]:
        """Object to constants such as 1e-12 that keep a divisor from zero, and to what divides by the sum."""
        for value in inputs:
            tensor = ir.convenience.get_const_tensor(value)
            if (
                tensor is not None
                and tensor.size == 1
                and 0 < abs(float(tensor.numpy().reshape(()))) < _SMALLEST_NORMAL
            ):
                follower: ir.Node | None = node
                while follower is not None:
                    users = [use.node for use in follower.outputs[0].uses() if use.node.op_type in _AFTER_EPSILON]
                    follower = users[0] if len(users) == 1 else None
                    if follower is not None:
                        self._stay(follower, f"it continues what `{value.name}` keeps from zero")
                yield f"`{value.name}` is too small for float16"

    # Casts

    def _graph(self, graph: ir.Graph, *, keep: bool) -> None:
        for value in graph.inputs:
            if self._types.get(value) == ir.DataType.FLOAT:
                self._now[value] = ir.DataType.FLOAT if keep else self._kind
                if not keep:
                    value.type = ir.TensorType(self._kind)
        for node in list(graph):
            for body in dtypes.bodies(node):
                self._graph(body, keep=True)
            self._node(node)
        self._outputs(graph, keep=keep)

    def _node(self, node: ir.Node) -> None:
        half = node not in self._stays
        known = dtypes.slots(node, self._opset)
        touched = False
        for index, value in enumerate(node.inputs):
            if value is None or self._types.get(value) != ir.DataType.FLOAT:
                continue
            narrow = half and known is not None and self._half_name in known.inputs[index]
            touched |= narrow
            self._want(node, index, value, self._kind if narrow else ir.DataType.FLOAT)
        for index, value in enumerate(node.outputs):
            if self._types.get(value) != ir.DataType.FLOAT:
                continue
            types = known.outputs[index] if known is not None else frozenset()
            narrow = half and self._half_name in types and not (index and self._is_statistic(types))
            touched |= narrow
            self._now[value] = self._kind if narrow else ir.DataType.FLOAT
            if narrow:
                value.type = ir.TensorType(self._kind)
        if touched:
            self._halves += 1
            self._attributes(node)

    def _attributes(self, node: ir.Node) -> None:
        """Let attributes state 16 bits where they stated float32."""
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self._kind))
        if node.op_type == "ConstantOfShape":
            stated = node.attributes.get("value")
            array = stated.as_tensor().numpy() if stated is not None else np.zeros(1, np.float32)
            narrow = ir.Tensor(to_half(array, self._kind, str(node.outputs[0].name)), self._kind)
            node.attributes["value"] = ir.AttrTensor("value", narrow)

    def _want(self, node: ir.Node, index: int, value: ir.Value, kind: ir.DataType) -> None:
        if value.is_initializer() and value not in self._now:
            if kind == self._kind:
                node.replace_input_with(index, self._narrowed(value))
            return
        if self._now.get(value, ir.DataType.FLOAT) == kind:
            return
        graph = cast("ir.Graph", node.graph)
        key = (value, kind, graph)
        if key not in self._casts:
            made = _cast(value, kind, self._taken)
            producer = value.producer()
            if producer is not None and producer.graph is graph:
                graph.insert_after(producer, [made])
            else:
                graph.insert_before(graph[0], [made])
            self._casts[key] = made.outputs[0]
        node.replace_input_with(index, self._casts[key])

    def _narrowed(self, value: ir.Value) -> ir.Value:
        if value not in self._narrow:
            made = _narrowed(
                value,
                self._kind,
                self._derivation,
                io.unused_name(self._taken, f"{value.name}_{self._settings.dtype}_"),
            )
            self._owner[value].register_initializer(made)
            self._narrow[value] = made
        return self._narrow[value]

    def _outputs(self, graph: ir.Graph, *, keep: bool) -> None:
        """Give outputs float32 under their old names."""
        for position, value in enumerate(graph.outputs):
            if self._types.get(value) != ir.DataType.FLOAT:
                continue
            now = self._now.get(value, ir.DataType.FLOAT)
            wanted = ir.DataType.FLOAT if keep or value.is_initializer() else self._kind
            if now == wanted:
                value.type = ir.TensorType(wanted)
                continue
            made = _cast(value, wanted, self._taken)
            output = made.outputs[0]
            producer = value.producer()
            assert producer is not None  # inputs and initializers have their type from the start
            if producer.graph is graph:
                output.name, value.name = value.name, io.unused_name(self._taken, f"{value.name}_inner_")
                output.shape = value.shape
            graph.append(made)
            graph.outputs[position] = output
