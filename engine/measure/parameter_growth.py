"""Why a compressed network has more parameters than its original, told from what its constants are for."""

from pathlib import Path

import onnx_ir as ir

from engine.graph import io
from engine.graph.quantized import is_quantized

# Smaller ones are equal by chance: shapes, axes, single numbers.
_SMALLEST_COPY = 64


def explain_growth(original: Path, compressed: Path) -> str | None:
    """Say what the parameters are that a network has more of; None where it has no more. Reads no external data."""
    before, after = io.load(original), io.load(compressed)
    had, has = _elements(before), _elements(after)
    if has <= had:
        return None
    scales = max(_scales(after) - _scales(before), 0)
    copies = max(_copies(after) - _copies(before), 0)
    rest = has - had - scales - copies
    told = [f"{scales:,} are scales and zero points"] if scales else []
    told += [f"{copies:,} are copies of equal constants"] if copies else []
    told += [f"{rest:,} are constants that steps made"] if rest > 0 else []
    gone = [f"{-rest:,} others are gone"] if rest < 0 else []
    return f"{has - had:,} more: {', '.join(told + gone)}"


def _elements(model: ir.Model) -> int:
    constants = [value.const_value.size for _, value in io.initializers(model) if value.const_value is not None]
    stored = (
        node.attributes["value"].as_tensor().size
        for node in model.graph.all_nodes()
        if node.op_type == "Constant" and "value" in node.attributes
    )
    return sum(constants) + sum(stored)


def _scales(model: ir.Model) -> int:
    """Add up the constants that only say how integers stand for numbers: what operators read beside data and weights."""
    found = 0
    for _, value in io.initializers(model):
        uses = value.uses()
        if value.const_value is not None and uses and all(_is_scale(use.node, use.idx) for use in uses):
            found += value.const_value.size
    return found


def _is_scale(node: ir.Node, index: int) -> bool:
    if not is_quantized(node.op_type):
        return False
    name = node.op_type
    if name in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeMatMul"}:
        return index >= (2 if name == "DynamicQuantizeMatMul" else 1)
    # Weights come second; MatMulNBits, GatherBlockQuantized and the integer kernels read their scales after them.
    return index >= 2 and not (name.startswith("QLinear") and index == 3)


def _copies(model: ir.Model) -> int:
    """Add up the constants in memory that equal an earlier one."""
    seen: set[tuple[object, ...]] = set()
    found = 0
    for _, value in io.initializers(model):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.size < _SMALLEST_COPY:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        found += tensor.size if key in seen else 0
        seen.add(key)
    return found
