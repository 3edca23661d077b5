"""Bring a network into the form that pruning reads: plain constants, no shared small weights, every node named."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engine.graph import io
from engine.graph.sizes import Sizes, evaluate, infer
from engine.graph.unshare import bypass_identities

# Larger weights that several nodes read stay shared: their axes are united instead, so that files do not grow.
_SMALL_BYTES = 1 << 16
_MOST_GROWTH_BYTES = 1 << 20
_FOLDED = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Concat", "Slice", "Split", "Gather"}
)


def prepare(model: ir.Model) -> None:
    """Change the network in place without changing its results."""
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    bypass_identities(model)
    _name_nodes(model)
    _fold_weights(model)
    _fold_sizes(model)
    passes.RemoveUnusedNodesPass()(model)
    _unshare_small(model)


def both_sizes(model: ir.Model, dims: dict[str, int] | None) -> tuple[Sizes, Sizes]:
    """Give the sizes at two choices of the dynamic dimensions: what differs is dynamic."""
    return infer(model, dims), infer(model, scale=2)


def _name_nodes(model: ir.Model) -> None:
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        if not node.name or node.name in seen:
            node.name = io.unused_name(taken, f"{node.name or node.op_type}_")
        seen.add(node.name)


def _fold_weights(model: ir.Model) -> None:
    """Compute movement of weights now, where that does not make the network larger."""
    taken = io.value_names(model)
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        foldable = node.op_type in _FOLDED or all(
            value.is_initializer() and _bytes(value) <= _SMALL_BYTES for value in inputs
        )
        if not inputs or not foldable or not all(value.is_initializer() for value in inputs):
            continue
        alone = len(inputs[0].uses()) == 1
        if not alone and sum(_bytes(value) for value in inputs) > _MOST_GROWTH_BYTES:
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


def _fold_sizes(model: ir.Model) -> None:
    """Compute sizes that do not depend on dynamic dimensions; numbers taken from a width keep their old value."""
    first, second = infer(model), infer(model, scale=2)
    taken = io.value_names(model)
    for node in model.graph:
        for value in node.outputs:
            name = value.name or ""
            array, other = first.known.get(name), second.known.get(name)
            if array is not None and other is not None and array.shape == other.shape and np.array_equal(array, other):
                _replace(model, value, array, taken)


def _replace(model: ir.Model, value: ir.Value, array: np.ndarray, taken: set[str]) -> None:
    if value.is_graph_output() or not value.uses():
        return
    name = io.unused_name(taken, f"{value.name}_constant")
    constant = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    assert constant.const_value is not None
    constant.type, constant.shape = ir.TensorType(constant.const_value.dtype), ir.Shape(array.shape)
    model.graph.register_initializer(constant)
    value.replace_all_uses_with(constant)


def _unshare_small(model: ir.Model) -> None:
    """Give each use of a small weight its own copy: exporters store equal biases and shapes once."""
    taken = io.value_names(model)
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        if len(uses) < 2 or _bytes(value) > _SMALL_BYTES or value.is_graph_output():
            continue
        for node, index in uses[1:]:
            if node.graph is not model.graph:
                continue
            name = io.unused_name(taken, f"{value.name}_")
            twin = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            model.graph.register_initializer(twin)
            node.replace_input_with(index, twin)
