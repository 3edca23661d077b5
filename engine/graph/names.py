"""The names by which a recipe speaks of a network's nodes."""

from collections.abc import Iterable

import onnx_ir as ir

from engine.errors import SpecInvalidError

_SHOWN = 5


def require_nodes(model: ir.Model, names: Iterable[str], field: str = "exclude") -> None:
    """Raise SpecInvalidError where a field of a recipe names nodes that the network does not have."""
    unknown = sorted(set(names) - {node.name or "" for node in model.graph.all_nodes()})
    if unknown:
        raise SpecInvalidError(f"`{field}` names nodes that the network does not have: {', '.join(unknown[:_SHOWN])}.")
