"""What can be chosen of a network in one precision, in numbers: variants of groups, blocks and layers, and what each costs.

A layer's cost depends on the widths of two groups, the one that it reads and the one that it makes, so it is a table over both;
everything else adds up. What a choice costs in all is exact for bytes and multiply-accumulates, and a prediction for time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engine.goal import Precision
from engine.search.values import Point

Array = npt.NDArray[np.float64]
# What is counted of a choice. Latency is a share of the original's; size and memory are bytes; damage is in its library's unit.
Quantity = Literal["latency", "size", "macs", "memory", "damage"]
# The quantities that tables of costs have, in the order of their first axis.
COSTS: tuple[Quantity, ...] = ("latency", "size", "macs")


@dataclass(frozen=True)
class GroupChoice:
    """Channels that go together: the widths that may stay, all of them first, and what each width damages."""

    name: str
    widths: tuple[int, ...]
    damages: tuple[float, ...]
    # The innermost block that the group is in; where that is dropped, the group costs and damages nothing.
    block: str | None = None


@dataclass(frozen=True)
class BlockChoice:
    """A residual branch that may go, and what that damages."""

    name: str
    damage: float
    # The block that it is in itself.
    inside: str | None = None


@dataclass(frozen=True)
class LayerVariant:
    """One way to store and compute a layer."""

    # (3, widths of the first group, widths of the second): COSTS; an axis of 1 where there is no group.
    costs: Array
    damage: float = 0.0
    rank: int | None = None
    in_float: bool = False


@dataclass(frozen=True)
class LayerChoice:
    """A layer, the two groups at most that its costs depend on, and its variants: the whole one in the tables' precision first."""

    name: str
    variants: tuple[LayerVariant, ...]
    axes: tuple[str | None, str | None] = (None, None)
    block: str | None = None


@dataclass(frozen=True)
class Moment:
    """What is alive at one time of a run: bytes by channel of each group, and bytes that no width changes."""

    per_channel: Mapping[str, float]
    fixed: float = 0.0


@dataclass(frozen=True)
class Choice:
    """One variant of everything: by place in the tables. Of what is dropped the numbers mean nothing."""

    widths: tuple[int, ...]
    dropped: tuple[bool, ...]
    variants: tuple[int, ...]


@dataclass(frozen=True)
class Tables:
    """Everything that can be chosen in one precision."""

    precision: Precision
    groups: tuple[GroupChoice, ...]
    blocks: tuple[BlockChoice, ...]
    layers: tuple[LayerChoice, ...]
    # COSTS of what nothing chooses, and the damage that the precision does to it.
    rest: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rest_damage: float = 0.0
    moments: tuple[Moment, ...] = field(default=(), repr=False)

    @cached_property
    def group_at(self) -> Mapping[str, int]:
        """Places of the groups by name."""
        return {group.name: place for place, group in enumerate(self.groups)}

    @cached_property
    def block_at(self) -> Mapping[str, int]:
        """Places of the blocks by name."""
        return {block.name: place for place, block in enumerate(self.blocks)}

    @property
    def whole(self) -> Choice:
        """The network with everything that it has."""
        return Choice((0,) * len(self.groups), (False,) * len(self.blocks), (0,) * len(self.layers))

    def is_gone(self, block: str | None, dropped: Sequence[bool]) -> bool:
        """Say whether a block, or one round it, is dropped."""
        while block is not None:
            place = self.block_at[block]
            if dropped[place]:
                return True
            block = self.blocks[place].inside
        return False

    def total(self, choice: Choice) -> dict[Quantity, float]:
        """Give every quantity of a choice; memory is the weights and what is alive at the fullest moment that is known."""
        costs = np.array(self.rest, np.float64)
        damage = self.rest_damage
        for place, layer in enumerate(self.layers):
            if self.is_gone(layer.block, choice.dropped):
                continue
            variant = layer.variants[choice.variants[place]]
            first, second = (self._index(group, choice) for group in layer.axes)
            costs += variant.costs[:, first, second]
            damage += variant.damage
        for place, group in enumerate(self.groups):
            if not self.is_gone(group.block, choice.dropped):
                damage += group.damages[choice.widths[place]]
        for place, block in enumerate(self.blocks):
            if choice.dropped[place] and not self.is_gone(block.inside, choice.dropped):
                damage += block.damage
        fullest = max((self._alive(moment, choice) for moment in self.moments), default=0.0)
        return {
            "latency": float(costs[0]),
            "size": float(costs[1]),
            "macs": float(costs[2]),
            "memory": float(costs[1]) + fullest,
            "damage": damage,
        }

    def _index(self, group: str | None, choice: Choice) -> int:
        return 0 if group is None else choice.widths[self.group_at[group]]

    def _alive(self, moment: Moment, choice: Choice) -> float:
        total = moment.fixed
        for name, each in moment.per_channel.items():
            place = self.group_at[name]
            group = self.groups[place]
            if not self.is_gone(group.block, choice.dropped):
                total += each * group.widths[choice.widths[place]]
        return total

    def point(self, choice: Choice) -> Point:
        """Give the point of a choice: of what is dropped nothing is said, and what is as it was is left out."""
        layers = [
            (layer.name, layer.variants[variant])
            for layer, variant in zip(self.layers, choice.variants, strict=True)
            if not self.is_gone(layer.block, choice.dropped)
        ]
        return Point(
            dropped=tuple(
                block.name
                for block, gone in zip(self.blocks, choice.dropped, strict=True)
                if gone and not self.is_gone(block.inside, choice.dropped)
            ),
            widths={
                group.name: group.widths[width]
                for group, width in zip(self.groups, choice.widths, strict=True)
                if width and not self.is_gone(group.block, choice.dropped)
            },
            ranks={name: variant.rank for name, variant in layers if variant.rank is not None},
            precision=self.precision,
            in_float=tuple(name for name, variant in layers if variant.in_float),
        )

    def choice(self, point: Point) -> Choice:
        """Give the choice that is nearest to a point: its widths by number of channels, its layers by rank and type."""
        return Choice(
            tuple(
                int(np.argmin([abs(width - point.widths.get(group.name, group.widths[0])) for width in group.widths]))
                for group in self.groups
            ),
            tuple(block.name in point.dropped for block in self.blocks),
            tuple(_nearest_variant(layer, point) for layer in self.layers),
        )

    def uniform(self, share: float) -> Choice:
        """Give the choice with the same share of every group, as near as its widths allow, and all else whole."""
        widths = tuple(
            int(np.argmin([abs(width / group.widths[0] - share) for width in group.widths])) for group in self.groups
        )
        return Choice(widths, self.whole.dropped, self.whole.variants)

    def uniforms(self) -> list[Choice]:
        """Give the uniform choices of every share that a group offers, the widest first, each once."""
        shares = {round(width / group.widths[0], 4) for group in self.groups for width in group.widths} | {1.0}
        return list(dict.fromkeys(self.uniform(share) for share in sorted(shares, reverse=True)))

    def moves(self, choice: Choice) -> Iterator[Choice]:
        """Yield the choices that differ from one in a single variant of what it has left."""
        groups = [(group.block, len(group.widths)) for group in self.groups]
        for widths in self._others(groups, choice.widths, choice.dropped):
            yield Choice(widths, choice.dropped, choice.variants)
        for place, block in enumerate(self.blocks):
            if not self.is_gone(block.inside, choice.dropped):
                yield Choice(choice.widths, _put(choice.dropped, place, not choice.dropped[place]), choice.variants)
        layers = [(layer.block, len(layer.variants)) for layer in self.layers]
        for variants in self._others(layers, choice.variants, choice.dropped):
            yield Choice(choice.widths, choice.dropped, variants)

    def _others(
        self, kinds: Sequence[tuple[str | None, int]], chosen: tuple[int, ...], dropped: Sequence[bool]
    ) -> Iterator[tuple[int, ...]]:
        for place, (block, count) in enumerate(kinds):
            if not self.is_gone(block, dropped):
                yield from (_put(chosen, place, other) for other in range(count) if other != chosen[place])


def _put(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _nearest_variant(layer: LayerChoice, point: Point) -> int:
    rank, in_float = point.ranks.get(layer.name), layer.name in point.in_float

    def distance(place: int) -> tuple[bool, bool, int, int]:
        variant = layer.variants[place]
        apart = abs((variant.rank or 0) - (rank or 0))
        return (variant.in_float != in_float, (variant.rank is None) != (rank is None), apart, place)

    return min(range(len(layer.variants)), key=distance)
