"""A variant library as tables of choices: every width, branch, rank and type of a layer, with what it costs and damages.

Tables are of the library alone. What composed networks taught (the prediction's correction) comes in by the limits, so that one
set of tables serves a whole search.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from engine.goal import Precision
from engine.search.architecture import Architecture
from engine.search.choices import (
    COSTS,
    Array,
    BlockChoice,
    Choice,
    GroupChoice,
    LayerChoice,
    LayerVariant,
    Tables,
)
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.terms import Term
from engine.search.values import Point

# In these a layer that stays in float would be no other layer.
_FLOATS = frozenset({"float32", "float16"})
_AXES = 2


def tables(architecture: Architecture, library: VariantLibrary, precision: Precision) -> Tables:
    """Tabulate what can be chosen in one precision; the same library is tabulated once.

    Variants that could not be made (infinite damage) are left out.
    """
    return _tables(_Same(architecture, library), precision)


def is_possible(library: VariantLibrary, precision: Precision) -> bool:
    """Say whether networks can be made in a precision at all, as far as that was tried."""
    return math.isfinite(library.precision_damage(precision))


class _Same:
    """A network and its library, known by being the same objects: neither can be hashed, and both are never changed."""

    def __init__(self, architecture: Architecture, library: VariantLibrary) -> None:
        self.architecture, self.library = architecture, library

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.architecture is other.architecture and self.library is other.library

    def __hash__(self) -> int:
        return hash((id(self.architecture), id(self.library)))


@lru_cache(maxsize=16)
def _tables(source: _Same, precision: Precision) -> Tables:
    return _Tabulation(source.architecture, source.library, precision).tables()


class _Tabulation:
    def __init__(self, architecture: Architecture, library: VariantLibrary, precision: Precision) -> None:
        self._architecture, self._library, self._precision = architecture, library, precision
        self._prediction = Prediction.of(architecture, library, [])
        self._blocks = [name for name in architecture.blocks if math.isfinite(library.block_damage(name))]
        self._widths = {name: self._possible(name, group.widths) for name, group in architecture.groups.items()}
        whole = library.precision_damage(precision)
        shares = library.layers.get(precision, {})
        scale = max(1.0, sum(shares.values()))
        self._layer_damage = {name: whole * share / scale for name, share in shares.items()}
        self._rest_damage = whole - sum(self._layer_damage.values())

    def _possible(self, group: str, widths: Sequence[int]) -> tuple[int, ...]:
        return (widths[0], *(width for width in widths[1:] if math.isfinite(self._library.width_damage(group, width))))

    def tables(self) -> Tables:
        terms = self._library.structure.terms
        layers: list[LayerChoice] = []
        constant = np.array(
            [self._prediction.fixed_ratio(self._precision), self._prediction.fixed_bytes(self._precision), 0.0]
        )
        rest_damage = self._rest_damage
        for term in terms:
            layers += self._choices(term)
        # What is the same for every choice is no layer's.
        kept = []
        for layer in layers:
            only = layer.variants[0]
            if len(layer.variants) == 1 and layer.axes == (None, None) and layer.block is None:
                constant += only.costs[:, 0, 0]
                rest_damage += only.damage
            else:
                kept.append(layer)
        latency, size, macs = (float(each) for each in constant)
        return Tables(
            precision=self._precision,
            groups=tuple(
                GroupChoice(
                    name,
                    widths,
                    (0.0, *(self._library.width_damage(name, width) for width in widths[1:])),
                    self._common_block([term.blocks for term in terms if name in term.groups]),
                )
                for name, widths in self._widths.items()
            ),
            blocks=tuple(
                BlockChoice(name, self._library.block_damage(name), self._around(name)) for name in self._blocks
            ),
            layers=tuple(kept),
            rest=(latency, size, macs),
            rest_damage=rest_damage,
        )

    # Blocks

    def _around(self, block: str) -> str | None:
        """Name the smallest other block that a block is in."""
        own = self._architecture.blocks[block].nodes
        around = [name for name in self._blocks if name != block and own < self._architecture.blocks[name].nodes]
        return min(around, key=lambda name: len(self._architecture.blocks[name].nodes), default=None)

    def _innermost(self, blocks: Sequence[str]) -> str | None:
        known = [name for name in blocks if name in self._blocks]
        return min(known, key=lambda name: len(self._architecture.blocks[name].nodes), default=None)

    def _common_block(self, blocks: Sequence[Sequence[str]]) -> str | None:
        """Name the smallest block that is round all of them."""
        common = [name for name in self._blocks if blocks and all(name in each for each in blocks)]
        return self._innermost(common)

    # Layers

    def _choices(self, term: Term) -> Iterator[LayerChoice]:
        """Yield a term's table over two groups; where it depends on more, the rest as pairs of whole variants."""
        groups = [name for name in term.groups if name in self._widths]
        block = self._innermost(term.blocks)
        if len(groups) > _AXES:
            groups.sort(key=lambda name: -self._influence(term, name))
        first: tuple[str | None, str | None] = ((*groups, None, None)[0], (*groups, None, None)[1])
        name = term.layer or term.name
        yield LayerChoice(name, tuple(self._variants(term, first)), first, block)
        for place, pair in enumerate(combinations(groups, 2)):
            if pair != first:
                yield LayerChoice(f"{name}/{place}", (LayerVariant(self._joint(term, groups, pair)),), pair, block)

    def _influence(self, term: Term, group: str) -> float:
        widths = {group: self._widths[group][-1]}
        return self._cost(term, {})[0] - self._cost(term, widths)[0]

    def _variants(self, term: Term, axes: tuple[str | None, str | None]) -> Iterator[LayerVariant]:
        layer = term.layer
        yield LayerVariant(self._table(term, axes), damage=self._layer_damage.get(layer or "", 0.0))
        if layer is None or layer not in self._architecture.layers:
            return
        if self._precision not in _FLOATS and layer in self._layer_damage:
            yield LayerVariant(self._table(term, axes, in_float=True), in_float=True)
        for rank in self._architecture.layers[layer].ranks:
            damage = self._library.rank_damage(layer, rank)
            if math.isfinite(damage):
                yield LayerVariant(
                    self._table(term, axes, rank=rank), self._layer_damage.get(layer, 0.0) + damage, rank=rank
                )

    def _table(
        self, term: Term, axes: tuple[str | None, str | None], *, rank: int | None = None, in_float: bool = False
    ) -> Array:
        first, second = ((None,) if name is None else self._widths[name] for name in axes)
        found = np.zeros((len(COSTS), len(first), len(second)))
        for row, one in enumerate(first):
            for column, other in enumerate(second):
                widths = {
                    name: width for name, width in zip(axes, (one, other), strict=True) if name is not None and width
                }
                found[:, row, column] = self._cost(term, widths, rank=rank, in_float=in_float)
        return found

    def _cost(
        self, term: Term, widths: Mapping[str, int], *, rank: int | None = None, in_float: bool = False
    ) -> tuple[float, float, float]:
        cost = self._prediction.cost(term, self._precision, widths, rank=rank, in_float=in_float)
        return cost.latency_ratio, float(cost.size_bytes), float(cost.macs)

    def _joint(self, term: Term, groups: Sequence[str], pair: tuple[str, str]) -> Array:
        """Tabulate what two groups change together, and what one changes alone where this is its first pair but for the table's.

        A cost of many groups is taken as the sum of what each changes alone and each two together, which is exact where it is a
        product of two sizes that are sums over groups.
        """
        full = np.array(self._cost(term, {}))[:, None, None]
        one, other = pair
        alone = self._table(term, (one, None)) - full, self._table(term, (None, other)) - full
        found: Array = self._table(term, pair) - full - alone[0] - alone[1]
        if one == groups[0] and other not in groups[:_AXES]:
            found = found + alone[1]
        return found


def point_of(architecture: Architecture, made: Tables, choice: Choice, like: Point | None = None) -> Point:
    """Give the point of a choice in the one form that its network has, with the options of another."""
    point = made.point(choice)
    if like is not None:
        point = point.model_copy(update={"options": like.options})
    return architecture.normalise(point)
