"""Where a network comes from and what was made from it, as a tree for templates."""

from collections.abc import Iterator
from typing import Any

from models import Model
from services.catalog import Lineage


def lineage_rows(model: Model, found: Lineage) -> list[dict[str, Any]]:
    """Give the tree from the first ancestor down, each network with its depth."""
    trunk = [*reversed(found.ancestors), model]
    rows = [{"model": each, "depth": depth, "this": each is model} for depth, each in enumerate(trunk)]
    children: dict[str | None, list[Model]] = {}
    for each in found.descendants:
        children.setdefault(each.parent_id, []).append(each)
    return [*rows, *_below(model.id, len(trunk), children)]


def _below(parent: str, depth: int, children: dict[str | None, list[Model]]) -> Iterator[dict[str, Any]]:
    for each in children.get(parent, ()):
        yield {"model": each, "depth": depth, "this": False}
        yield from _below(each.id, depth + 1, children)
