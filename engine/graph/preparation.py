"""Bring a network into the form that pruning reads: plain constants, no shared small weights, every node named."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engine.graph import io
from engine.graph.shape_arithmetic import evaluate
from engine.graph.sizes import Sizes, infer
from engine.graph.unshare import bypass_identities

# Larger weights that several nodes read stay shared: their axes are united instead, so that files do not grow.
_SMALL_BYTES = 1 << 16
_FOLDED = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Concat", "Slice", "Split", "Gather"}
)


def prepare(model: ir.Model, dims: Mapping[str, int] | None = None) -> Sizes:
    """Change the network in place without changing its results; give the sizes of its values."""
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    bypass_identities(model)
    _name_nodes(model)
    taken = io.value_names(model)
    _fold_weights(model, taken)
    sizes = infer(model, dims)
    _fold_sizes(model, sizes, taken)
    passes.RemoveUnusedNodesPass()(model)
    _unshare_small(model, sizes, taken)
    return sizes


def _name_nodes(model: ir.Model) -> None:
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        if not node.name and node.outputs and node.outputs[0].name and node.outputs[0].name not in taken:
            # Unlike a number it stays the same when other nodes go.
            node.name = node.outputs[0].name
            taken.add(node.name)
        elif not node.name or node.name in seen:
            node.name = io.unused_name(taken, f"{node.name or node.op_type}_")
        seen.add(node.name)


def _fold_weights(model: ir.Model, taken: set[str]) -> None:
    """Compute movement of weights now, where that does not make the network larger."""
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        foldable = node.op_type in _FOLDED or all(
            value.is_initializer() and _bytes(value) <= _SMALL_BYTES for value in inputs
        )
        if not inputs or not foldable or not all(value.is_initializer() for value in inputs):
            continue
        alone = len(inputs[0].uses()) == 1
        if not alone and sum(_bytes(value) for value in inputs) > _SMALL_BYTES:
            continue
        arrays = [
            None if value is None or value.const_value is None else value.const_value.numpy() for value in node.inputs
        ]
        outcome = evaluate(node, arrays)
        if outcome is not None:
            for value, array in zip(node.outputs, outcome, strict=False):
                _replace(model, value, array, taken)


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _fold_sizes(model: ir.Model, sizes: Sizes, taken: set[str]) -> None:
    """Compute sizes that do not depend on dynamic dimensions; numbers taken from a width keep their old value."""
    for node in model.graph:
        for value in node.outputs:
            name = value.name or ""
            if name in sizes.known and name not in sizes.moving:
                constant = _replace(model, value, sizes.known[name], taken)
                if constant is not None:
                    sizes.enter_initializer(constant)


def _replace(model: ir.Model, value: ir.Value, array: np.ndarray, taken: set[str]) -> ir.Value | None:
    if value.is_graph_output() or not value.uses():
        return None
    constant = _register(model, io.unused_name(taken, f"{value.name}_constant"), array)
    value.replace_all_uses_with(constant)
    return constant


def _register(model: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    # Making an array contiguous turns a scalar into a vector; hence the reshape.
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype, name=name)
    constant = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(constant)
    return constant


def _unshare_small(model: ir.Model, sizes: Sizes, taken: set[str]) -> None:
    """Give each use of a small weight its own copy: exporters store equal biases and shapes once."""
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        uses = list(value.uses())
        if tensor is None or len(uses) < 2 or tensor.nbytes > _SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        for node, index in uses[0 if value.is_graph_output() else 1 :]:
            if node.graph is not model.graph:
                continue
            # A tensor carries its value's name, so that a copy needs a tensor of its own.
            twin = _register(model, io.unused_name(taken, f"{value.name}_"), tensor.numpy(), tensor.dtype)
            node.replace_input_with(index, twin)
            sizes.enter_initializer(twin)
