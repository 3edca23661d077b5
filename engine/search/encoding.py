"""Points as a few whole numbers that a sampler can turn: widths by stage, blocks, precision, float layers, ranks, options.

Samplers learn from tens of trials, so there may be tens of knobs at most: where there are many groups, neighbours share a
knob, and what can be put in an order of usefulness (layers to keep in float, layers to split) is a number of how many.
Single groups and layers are the business of the solver and of fine moves around the best.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from engine.goal import Precision
from engine.search.anatomy import WidthGroup
from engine.search.architecture import Architecture
from engine.search.knobs import Knob, Values
from engine.search.library import VariantLibrary
from engine.search.tabulation import is_possible
from engine.search.values import Point

_MOST_STAGES = 10
_MOST_BLOCKS = 8
# Layers that stay in float, and steps of split layers: so many, doubling.
_MOST_IN_FLOAT = 0.5
_FLOATS = frozenset({"float32", "float16"})
# Of candidates that are not trained, what training does says nothing.
_OF_TRAINING = "distill."


class Encoding:
    """The knobs of a network, and points in both directions. Knobs that nothing depends on are left out."""

    def __init__(self, architecture: Architecture, library: VariantLibrary) -> None:
        self._architecture, self._library = architecture, library
        self._precisions = [each for each in architecture.precisions if is_possible(library, each)] or ["float32"]
        self._shares = sorted({1.0, *architecture.space.widths}, reverse=True)
        self._stages = stages(list(architecture.groups.values()))
        self._blocks = [name for name in architecture.blocks if math.isfinite(library.block_damage(name))]
        self._blocks.sort(key=library.block_damage)
        self._depths = _counts(len(self._blocks)) if len(self._blocks) > _MOST_BLOCKS else None
        quantized = any(each not in _FLOATS for each in self._precisions)
        self._floats = _counts(int(len(architecture.layers) * _MOST_IN_FLOAT)) if quantized else [0]
        self._splits = _counts(len(self._split_steps))
        self._options = {
            name: values for name, values in architecture.options.items() if not name.startswith(_OF_TRAINING)
        }
        self.knobs: tuple[Knob, ...] = tuple(self._made())

    def _made(self) -> list[Knob]:
        found = [Knob("precision", len(self._precisions), ordered=False)]
        found += [Knob(f"width:{place}", len(self._shares)) for place in range(len(self._stages))]
        if self._depths is not None:
            found.append(Knob("depth", len(self._depths)))
        else:
            found += [Knob(f"block:{name}", 2) for name in self._blocks]
        found += [Knob("in_float", len(self._floats)), Knob("ranks", len(self._splits))]
        found += [Knob(f"option:{name}", len(values), ordered=False) for name, values in self._options.items()]
        return [knob for knob in found if knob.levels > 1]

    def point(self, values: Values) -> Point:
        """Give the point that the knobs' values stand for, in its normal form."""
        at = {knob.name: value for knob, value in zip(self.knobs, values, strict=True)}
        precision = self._precisions[at.get("precision", 0)]
        widths = {
            group.name: group.nearest(self._shares[at.get(f"width:{place}", 0)])
            for place, stage in enumerate(self._stages)
            for group in stage
        }
        if self._depths is not None:
            dropped = self._blocks[: self._depths[at.get("depth", 0)]]
        else:
            dropped = [name for name in self._blocks if at.get(f"block:{name}")]
        ranks = dict(self._split_steps[: self._splits[at.get("ranks", 0)]])
        options = {name: choices[at.get(f"option:{name}", 0)] for name, choices in self._options.items()}
        point = Point(
            dropped=tuple(name for name in self._architecture.blocks if name in dropped),
            widths=widths,
            ranks=ranks,
            precision=precision,
            in_float=tuple(self._most_harmed(precision)[: self._floats[at.get("in_float", 0)]]),
            options=options,
        )
        return self._architecture.normalise(point)

    def values(self, point: Point) -> Values:
        """Give the knobs' values whose point is nearest: of a stage the mean share, of layers how many."""
        at: dict[str, int] = {}
        if point.precision in self._precisions:
            at["precision"] = self._precisions.index(point.precision)
        for place, stage in enumerate(self._stages):
            kept = float(np.mean([point.widths.get(group.name, group.size) / group.size for group in stage]))
            at[f"width:{place}"] = _nearest(self._shares, kept)
        at |= {f"block:{name}": int(name in point.dropped) for name in self._blocks}
        at["depth"] = _nearest(self._depths or [0], len(point.dropped))
        at["in_float"] = _nearest(self._floats, len(point.in_float))
        split = sum(point.ranks.get(layer, math.inf) <= rank for layer, rank in self._split_steps)
        at["ranks"] = _nearest(self._splits, split)
        for name, choices in self._options.items():
            value = point.options.get(name, choices[0])
            at[f"option:{name}"] = choices.index(value) if value in choices else 0
        return tuple(at[knob.name] for knob in self.knobs)

    def random(self, random: np.random.Generator) -> Values:
        """Draw values, all as likely as each other."""
        return tuple(int(random.integers(knob.levels)) for knob in self.knobs)

    def _most_harmed(self, precision: Precision) -> list[str]:
        """List layers by how much of a precision's damage is theirs, the most first."""
        if precision in _FLOATS:
            return []
        shares: Mapping[str, float] = self._library.layers.get(precision, {})
        return sorted((name for name in self._architecture.layers if name in shares), key=lambda name: -shares[name])

    @cached_property
    def _split_steps(self) -> list[tuple[str, int]]:
        """List (layer, rank) in the order in which splitting pays: by damage for each multiplication that is saved."""
        found = []
        for layer in self._architecture.layers.values():
            for rank in layer.ranks:
                damage = self._library.rank_damage(layer.name, rank)
                saved = layer.macs * (1 - layer.split_share(rank, layer.reads.size, layer.makes.size))
                if math.isfinite(damage) and saved > 0:
                    found.append((damage / saved, -rank, layer.name, rank))
        # A lower rank of the same layer counts from its higher one on.
        return [(name, rank) for _, _, name, rank in sorted(found)]


def stages(groups: Sequence[WidthGroup], most: int = _MOST_STAGES) -> list[list[WidthGroup]]:
    """Part groups, in the graph's order, into so many runs at most: where kind and size change, else about evenly."""
    runs: list[list[WidthGroup]] = []
    for group in groups:
        if runs and (runs[-1][-1].kind, runs[-1][-1].size) == (group.kind, group.size):
            runs[-1].append(group)
        else:
            runs.append([group])
    while len(runs) > most:
        place = min(range(len(runs) - 1), key=lambda each: len(runs[each]) + len(runs[each + 1]))
        runs[place : place + 2] = [runs[place] + runs[place + 1]]
    while len(runs) < min(most, len(groups)):
        place = max(range(len(runs)), key=lambda each: len(runs[each]))
        half = (len(runs[place]) + 1) // 2
        runs[place : place + 1] = [runs[place][:half], runs[place][half:]]
    return runs


def _counts(most: int) -> list[int]:
    """Give 0, 1, 2, 4, ... and the most."""
    found = [0]
    while found[-1] < most:
        found.append(min(most, max(1, found[-1] * 2)))
    return found


def _nearest(values: Sequence[float], value: float) -> int:
    return min(range(len(values)), key=lambda place: (abs(values[place] - value), place))
