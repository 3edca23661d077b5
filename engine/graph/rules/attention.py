"""Attention as one operator: heads can go, the width of a head cannot."""

import numpy as np
import onnx_ir as ir

from engine.graph import labels as lab
from engine.graph.attributes import integer
from engine.graph.execution import Execution, Split
from engine.graph.labels import Array, Labels
from engine.graph.rules.registry import CONTRIB, Rules, follows, listed

_WIDTH = "a fused attention keeps the width of its heads"


def headed(run: Execution, node: ir.Node, value: ir.Value | None, heads: int) -> Array | None:
    """Give the label of each head of a value whose last axis is heads x width, None where labels differ inside a head."""
    found = run.label(value)
    if found is None:
        return None
    if found.axis != len(found.shape) - 1 or found.shape[-1] % heads or heads == 1:
        run.freeze(found, node, _WIDTH)
        return None
    vector = run.collapse(found, node)
    run.splits.append(Split(str(node.name), vector, len(vector) // heads, "heads"))
    table = run.union.find(vector).reshape(heads, -1)
    if not (table == table[:, :1]).all():
        run.freeze(found, node, _WIDTH)
        return None
    return vector.reshape(heads, -1)[:, 0]


def multi_head(run: Execution, node: ir.Node) -> None:
    """Query, key and value as three inputs of shape batch x time x hidden."""
    standard = node.domain != CONTRIB
    heads = integer(node, "q_num_heads" if standard else "num_heads", 1)
    shared = heads
    if standard or node.op_type == "GroupQueryAttention":
        shared = integer(node, "kv_num_heads", heads)
    parts = [node.inputs[index] if index < len(node.inputs) else None for index in range(3)]
    if any(value is not None and len(run.shape(value)) != 3 for value in parts) or any(
        value is None for value in parts
    ):
        run.freeze_inputs(node, "packs its inputs")
        return
    # Everything beyond query, key and value that could carry channels (caches, masks by head) stays as it is.
    extras = [value for value in node.inputs[3:] if value is not None]
    for value in extras:
        run.freeze(run.label(value), node, _WIDTH)
    query, key, content = (
        headed(run, node, part, count) for part, count in zip(parts, (heads, shared, shared), strict=True)
    )
    if query is None or key is None or content is None:
        for atoms in (query, key, content):
            run.freeze(atoms, node, _WIDTH)
        return
    run.unite(key, content, node)
    run.unite(query, np.repeat(key, heads // shared), node)
    if any(_has_heads(run, extra, heads) for extra in extras) or any(output.name for output in node.outputs[1:]):
        run.freeze(query, node, "its caches, bias or masks are listed by head")
    _count(run, node, query, "q_num_heads" if standard else "num_heads")
    if standard or node.op_type == "GroupQueryAttention":
        _count(run, node, key, "kv_num_heads")
    shape = run.shape(node.outputs[0])
    run.set(node, lab.along(shape, 2, np.repeat(query, shape[2] // heads)))


def _has_heads(run: Execution, value: ir.Value, heads: int) -> bool:
    shape = run.sizes.shape(value)
    return shape is None or (len(shape) == 4 and shape[1] == heads) or (len(shape) == 1 and shape[0] > heads)


def _count(run: Execution, node: ir.Node, atoms: Array, name: str) -> None:
    run.note(node, "attribute", Labels((len(atoms), 1), atoms[:, None], 0), name=name)


@follows(0)
def packed(run: Execution, node: ir.Node) -> None:
    """The contrib Attention: input, one weight for query, key and value, bias, then masks and caches."""
    weight = node.inputs[1]
    assert weight is not None
    vector = run.channels(node.inputs[0], 2, node)
    if not run.constant(weight) or "qkv_hidden_sizes" in node.attributes:
        run.freeze(vector, node, "its weight is computed or its parts differ in width")
        return
    shape = run.shape(weight)
    if vector is not None:
        run.member(weight, lab.along(shape, 0, vector), "in", node)
    heads = integer(node, "num_heads", 1)
    width = shape[1] // 3 // heads
    fresh = run.fresh(f"{node.name}:out", shape[1], node)
    if fresh is None:
        return
    run.splits.append(Split(str(node.name), fresh, width, "heads"))
    table = fresh.reshape(3, heads, width)
    if not (table == table[:, :, :1]).all() or heads == 1:
        run.freeze(fresh, node, _WIDTH)
        return
    run.unite(table[:1], table, node)
    atoms = table[0, :, 0]
    if any(value is not None and _has_heads(run, value, heads) for value in node.inputs[4:]) or any(
        output.name for output in node.outputs[1:]
    ):
        run.freeze(atoms, node, "its caches, bias or masks are listed by head")
    run.member(weight, lab.along(shape, 1, fresh), "out", node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        run.member(bias, lab.along((shape[1],), 0, fresh), "pass", node)
    _count(run, node, atoms, "num_heads")
    run.set(node, lab.along(run.shape(node.outputs[0]), 2, np.repeat(atoms, width)))


@follows(0)
def rotary(run: Execution, node: ir.Node) -> None:
    """Rotary embedding: turns pairs inside a head; of 4 axes the heads are their own axis."""
    found = run.label(node.inputs[0])
    if found is None:
        return
    if len(found.shape) == 4:
        if found.axis != 1 or found.rows:
            run.freeze(found, node, _WIDTH)
            return
        run.set(node, found)
        return
    heads = integer(node, "num_heads", 0)
    if not heads:
        tables = run.shape(node.inputs[2 if node.domain == CONTRIB else 1])
        heads = found.shape[-1] // (2 * tables[-1])
    atoms = headed(run, node, node.inputs[0], heads)
    if atoms is not None:
        if "num_heads" in node.attributes and integer(node, "num_heads", 0):
            _count(run, node, atoms, "num_heads")
        run.set(node, lab.along(found.shape, 2, np.repeat(atoms, found.shape[2] // heads)))


RULES: Rules = {
    **listed(multi_head, "Attention"),
    **listed(multi_head, "MultiHeadAttention", "GroupQueryAttention", domain=CONTRIB),
    **listed(packed, "Attention", domain=CONTRIB),
    **listed(rotary, "RotaryEmbedding"),
    **listed(rotary, "RotaryEmbedding", domain=CONTRIB),
}
