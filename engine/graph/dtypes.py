"""Element types of all tensors of a network, and which inputs and outputs of a node may change theirs, by ONNX's schemas."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from engine.graph import io

_STANDARD = frozenset({"", "ai.onnx"})
# ONNX Runtime's own operators of which all floats, in and out, are of one type that may be 16-bit.
_UNIFORM = frozenset(
    {
        "Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "MultiHeadAttention", "QuickGelu",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Slots:
    """The types that each present input and each output of a node may have, as ONNX spells them, and how they are tied."""

    inputs: Sequence[frozenset[str]]
    outputs: Sequence[frozenset[str]]
    # Names of type variables; two slots with one name have one type. None: a type of its own.
    input_names: Sequence[str | None]
    output_names: Sequence[str | None]


def slots(node: ir.Node, opset: int) -> Slots | None:
    """Give what the schema says of a node; None where there is none."""
    if node.domain not in _STANDARD:
        if node.op_type not in _UNIFORM:
            return None
        floats = frozenset({"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int32)", "tensor(int64)"})
        return Slots(
            [floats] * len(node.inputs),
            [floats] * len(node.outputs),
            ["T"] * len(node.inputs),
            ["T"] * len(node.outputs),
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    constraints = {rule.type_param_str: frozenset(rule.allowed_type_strs) for rule in schema.type_constraints}

    def describe(
        formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int
    ) -> Iterator[tuple[frozenset[str], str | None]]:
        for index in range(count):
            parameter = formal[min(index, len(formal) - 1)]
            tied = parameter.type_str in constraints and parameter.is_homogeneous
            yield (
                constraints.get(parameter.type_str, frozenset({parameter.type_str})),
                parameter.type_str if tied else None,
            )

    inputs, outputs = (
        list(describe(schema.inputs, len(node.inputs))),
        list(describe(schema.outputs, len(node.outputs))),
    )
    return Slots(
        [types for types, _ in inputs],
        [types for types, _ in outputs],
        [name for _, name in inputs],
        [name for _, name in outputs],
    )


def infer(model: ir.Model) -> tuple[dict[ir.Value, ir.DataType], ir.Node | None]:
    """Give the element type of every tensor, those of bodies included, and the first node whose results are not known."""
    found: dict[ir.Value, ir.DataType] = {}
    unknown = _infer(model.graph, io.opset(model), found)
    return found, unknown


def bodies(node: ir.Node) -> list[ir.Graph]:
    """List the graphs inside a node."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _infer(graph: ir.Graph, opset: int, found: dict[ir.Value, ir.DataType]) -> ir.Node | None:
    unknown: ir.Node | None = None
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype is not None:
            found[value] = value.dtype
        elif value.const_value is not None:
            found[value] = value.const_value.dtype
    for node in graph:
        inner = bodies(node)
        for body in inner:
            unknown = unknown or _infer(body, opset, found)
        for index, output in enumerate(node.outputs):
            kind = _body_type(node, index, inner, found) if inner else _output_type(node, index, opset, found)
            if kind is None and output.dtype is not None:
                kind = output.dtype
            if kind is not None:
                found[output] = kind
            elif output.uses() or output.is_graph_output():
                unknown = unknown or node
    return unknown


def _body_type(
    node: ir.Node, index: int, inner: Sequence[ir.Graph], found: dict[ir.Value, ir.DataType]
) -> ir.DataType | None:
    # The body of Loop gives its condition first.
    position = index + 1 if node.op_type == "Loop" else index
    outputs = inner[0].outputs
    return found.get(outputs[position]) if position < len(outputs) else None


def _output_type(node: ir.Node, index: int, opset: int, found: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    stated = _stated(node)
    if stated is not None:
        return stated
    known = slots(node, opset)
    if known is None:
        return None
    name = known.output_names[index]
    if name is not None:
        for value, tied in zip(node.inputs, known.input_names, strict=True):
            if tied == name and value is not None and value in found:
                return found[value]
    if len(known.outputs[index]) == 1:
        return _parse(next(iter(known.outputs[index])))
    if node.op_type == "LayerNormalization":
        return ir.DataType.FLOAT
    return None


def _stated(node: ir.Node) -> ir.DataType | None:
    """Give the type that an attribute states."""
    for name in ("to", "dtype", "output_dtype"):
        if name in node.attributes and node.attributes[name].as_int():
            return ir.DataType(node.attributes[name].as_int())
    if node.op_type in {"Constant", "ConstantOfShape"}:
        if "value" in node.attributes:
            return node.attributes["value"].as_tensor().dtype
        floats = {"value_float", "value_floats"} & set(node.attributes) or node.op_type == "ConstantOfShape"
        return ir.DataType.FLOAT if floats else ir.DataType.INT64
    return ir.DataType.FLOAT if node.op_type.startswith("Random") and "Like" not in node.op_type else None


def _parse(name: str) -> ir.DataType | None:
    kinds = {"float": "FLOAT", "double": "DOUBLE"}
    inner = name.removeprefix("tensor(").removesuffix(")")
    return ir.DataType[kinds.get(inner, inner.upper())] if name.startswith("tensor(") else None
