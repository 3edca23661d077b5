"""The names by which a recipe speaks of a network's nodes."""

from collections.abc import Iterable
from typing import Any, Protocol

import onnx_ir as ir

from engine.errors import SpecInvalidError

_SHOWN = 5


class _Named(Protocol):
    name: Any


def tell_apart(nodes: Iterable[_Named]) -> int:
    """Give nodes that share a name with an earlier one a number behind it (`conv`, `conv_2`), in place; say how many did."""
    listed = list(nodes)
    taken = {node.name for node in listed if node.name}
    seen: dict[str, int] = {}
    renamed = 0
    for node in listed:
        name = node.name
        if not name:
            continue
        count = seen.get(name, 0) + 1
        if count > 1:
            while f"{name}_{count}" in taken:
                count += 1
            node.name = f"{name}_{count}"
            taken.add(node.name)
            renamed += 1
        seen[name] = count
    return renamed


def require_nodes(model: ir.Model, names: Iterable[str], field: str = "exclude") -> None:
    """Raise SpecInvalidError where a field of a recipe names nodes that the network does not have.

    A node without a name goes by that of its first output.
    """
    known = {node.name or str(node.outputs[0].name) for node in model.graph.all_nodes() if node.name or node.outputs}
    unknown = sorted(set(names) - known)
    if unknown:
        raise SpecInvalidError(f"`{field}` names nodes that the network does not have: {', '.join(unknown[:_SHOWN])}.")
