"""What a node's attributes say, or the constant inputs that took their place in later operator sets."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

Array = np.ndarray


def integer(node: ir.Node, name: str, default: int) -> int:
    """Read an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def number(node: ir.Node, name: str, default: float) -> float:
    """Read a float attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def integers(node: ir.Node, name: str) -> list[int] | None:
    """Read a list-of-integers attribute, None where it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(item) for item in attribute.as_ints()]


def text(node: ir.Node, name: str, default: str) -> str:
    """Read a string attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def axes_of(node: ir.Node, constant: Array | None, rank: int) -> tuple[int, ...] | None:
    """Read axes from the attribute of older operator sets or from the constant input of newer ones."""
    listed = integers(node, "axes")
    if listed is None and constant is not None:
        listed = [int(axis) for axis in constant.reshape(-1)]
    return None if listed is None else tuple(axis % rank for axis in listed)


def slices(node: ir.Node, operands: Sequence[Array | None], rank: int) -> tuple[slice, ...] | None:
    """Give a Slice node's ranges for each axis, None where they are not constant."""
    starts, ends = integers(node, "starts"), integers(node, "ends")
    axes: Sequence[int] | None = integers(node, "axes")
    steps: Sequence[int] | None = None
    if starts is None or ends is None:
        if len(operands) < 2 or operands[0] is None or operands[1] is None:
            return None
        starts, ends = operands[0].tolist(), operands[1].tolist()
        axes = operands[2].tolist() if len(operands) > 2 and operands[2] is not None else None
        steps = operands[3].tolist() if len(operands) > 3 and operands[3] is not None else None
    found = [slice(None)] * rank
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = index if axes is None else axes[index] % rank
        step = 1 if steps is None else steps[index]
        # A negative step to before the first element has no spelling in Python but None.
        found[axis] = slice(start, None if step < 0 and end < -(1 << 31) else end, step)
    return tuple(found)
