"""onnxslim, with shapes from onnx's own inference where that knows all of them.

onnxslim's own loads SymPy, which takes longer than all else that a small network's simplification does, and is for sizes that are
computed from open ones.
"""

import sys
from collections.abc import Container
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import onnx
from onnx import TypeProto

# Where onnxslim takes `SymbolicShapeInference` from when it is imported.
_HOME = "onnxslim.third_party.symbolic_shape_infer"


def slim(model: onnx.ModelProto, *, infer_shapes: bool = True) -> onnx.ModelProto:
    """Fold constants and fuse what can be fused; raises whatever onnxslim raises."""
    # Its own annotation takes each option for all of them.
    options: Any = {"no_shape_infer": not infer_shapes}
    slimmed: onnx.ModelProto = _onnxslim().slim(model, **options)
    return slimmed


def _onnxslim() -> Any:
    """Give the package, imported with our inference in the place of its own."""
    if "onnxslim" not in sys.modules:
        stand_in = ModuleType(_HOME)
        stand_in.SymbolicShapeInference = _Inference  # type: ignore[attr-defined]
        sys.modules[_HOME] = stand_in
        try:
            import_module("onnxslim")
        finally:
            del sys.modules[_HOME]
    return sys.modules["onnxslim"]


class _Inference:
    """As onnxslim asks for it."""

    @staticmethod
    def infer_shapes(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        """Give the network with all shapes that can be known."""
        # What onnx makes nothing of, such as more than protobuf's 2 GiB, the other one may.
        with suppress(ValueError, RuntimeError, onnx.shape_inference.InferenceError):
            if not _has_graphs(model) and _knows_all((inferred := onnx.shape_inference.infer_shapes(model)).graph):
                return inferred
        found: onnx.ModelProto = import_module(_HOME).SymbolicShapeInference.infer_shapes(model, **options)
        return found


def _has_graphs(model: onnx.ModelProto) -> bool:
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    return bool(model.functions) or any(
        attribute.type in kinds for node in model.graph.node for attribute in node.attribute
    )


def _knows_all(graph: onnx.GraphProto) -> bool:
    """Say whether every tensor has a shape of numbers and of names that the inputs' axes have: onnx makes up others."""
    names = {size.dim_param for value in graph.input for size in value.type.tensor_type.shape.dim} - {""}
    known = {value.name for value in (*graph.value_info, *graph.output) if _is_known(value.type, names)}
    return all(name in known for node in graph.node for name in node.output if name)


def _is_known(kind: TypeProto, names: Container[str]) -> bool:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return False
    return all(size.HasField("dim_value") or size.dim_param in names for size in kind.tensor_type.shape.dim)
