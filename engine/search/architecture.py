"""The space round a network: what its points are, which of them say the same, what stands beside one, how one is told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.errors import SpecInvalidError
from engine.goal import Precision, Space
from engine.report.detail_parts import counted
from engine.search import anatomy
from engine.search.anatomy import BREAK_EVEN, Branch, Layer, WidthGroup
from engine.search.options import PASS_OF, objection_to, options_of
from engine.search.values import Option, Point
from engine.target import Target

_TOLD: dict[Precision, str] = {
    "float32": "32-bit floats",
    "float16": "16-bit floats",
    "static": "8-bit integers with fixed ranges",
    "dynamic": "8-bit integers with fresh ranges",
    "weights8": "weights in 8 bits",
    "weights4": "weights in 4 bits",
}
_SHOWN = 20
# What is wrong with a point: in words, with the node, and what to do.
Objection = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class LayerAt:
    """A layer as it is at a point: how many channels it reads and makes, at which rank."""

    layer: Layer
    reads: int
    makes: int
    # None: it stays whole.
    rank: int | None

    @property
    def share(self) -> float:
        """Its multiplications and weights as a share of those of the layer as it was."""
        layer = self.layer
        grouped = layer.depthwise and layer.reads.size == layer.makes.size
        one_side = self.makes / layer.makes.size
        whole = one_side if grouped else one_side * self.reads / layer.reads.size
        return whole if self.rank is None else whole * layer.split_share(self.rank, self.reads, self.makes)


@dataclass(frozen=True)
class Architecture:
    """What of a network may change, and its points. Valid for the simplified network that it was read from."""

    space: Space
    groups: Mapping[str, WidthGroup]
    blocks: Mapping[str, Branch]
    layers: Mapping[str, Layer]
    precisions: tuple[Precision, ...]
    # By pass and parameter, as `quantize_weights.group`: values that may be tried, the default first.
    options: Mapping[str, tuple[Option, ...]] = field(repr=False)
    # Of the whole network at batch 1.
    macs: int
    parameters: int

    @classmethod
    def of(cls, model: ir.Model, space: Space, target: Target, *, has_data: bool = True) -> "Architecture":
        """Read a network that is simplified and fused; a precision that it cannot have is not among its points.

        Without data nothing is cut: random inputs do not say what may go, and nothing could be refitted.
        """
        if not has_data:
            space = space.model_copy(update={"widths": (1.0,), "drop_blocks": False, "ranks": ()})
        found = anatomy.read(model, space, target)
        precisions = tuple(each for each in space.precisions if not objection_to(each, model, has_data=has_data))
        return cls(
            space=space,
            groups={group.name: group for group in found.groups},
            blocks={branch.name: branch for branch in found.branches},
            layers={layer.name: layer for layer in found.layers},
            precisions=precisions or ("float32",),
            options=options_of(precisions),
            macs=found.macs,
            parameters=found.parameters,
        )

    # --- points ------------------------------------------------------------------------------------------------------

    def normalise(self, point: Point) -> Point:
        """Give the point in the one form that its network has: sorted, without what is full size, gone or without effect."""
        gone = self.gone(point)
        # A branch inside of a larger one that goes is gone with it.
        dropped = [name for name in self.blocks if name in point.dropped and name not in gone]
        widths = {
            name: point.widths[name]
            for name, group in self.groups.items()
            if point.widths.get(name, group.size) < group.size and not gone.issuperset(group.producers)
        }
        bare = Point(dropped=tuple(dropped), widths=widths)
        ranks = {
            each.layer.name: rank
            for each in self.layers_at(bare)
            if (rank := point.ranks.get(each.layer.name)) is not None and self._pays(each, rank)
        }
        quantized = point.precision not in {"float32", "float16"}
        in_float = tuple(
            each.layer.name
            for each in self.layers_at(bare)
            if quantized and each.layer.name in point.in_float and each.layer.name not in ranks
        )
        return Point(
            dropped=bare.dropped,
            widths=widths,
            ranks=ranks,
            precision=point.precision,
            in_float=in_float,
            options=self._effective(point, prunes=bool(widths)),
        )

    def _pays(self, at: LayerAt, rank: int) -> bool:
        return (
            rank < at.layer.full_rank(at.reads, at.makes)
            and at.layer.split_share(rank, at.reads, at.makes) <= BREAK_EVEN
        )

    def _effective(self, point: Point, *, prunes: bool) -> dict[str, Option]:
        used = {PASS_OF.get(point.precision)} | ({"prune_channels"} if prunes else set())
        return {
            name: point.options[name]
            for name, values in self.options.items()
            if name in point.options and name.partition(".")[0] in used and point.options[name] != values[0]
        }

    def check(self, point: Point) -> None:
        """Raise SpecInvalidError with the reason where there is no such network."""
        reason = next(self._objections(point), None)
        if reason is not None:
            raise SpecInvalidError(reason[0], node=reason[1], hint=reason[2])

    def _objections(self, point: Point) -> Iterator[Objection]:
        yield from self._unknown_structure(point)
        yield from self._unknown_ranks(point)
        if point.precision not in self.precisions:
            yield f"The space has no {point.precision}.", None, f"It has {', '.join(self.precisions)}."
        for name in point.in_float:
            if name not in self.layers:
                yield f"No layer is called `{name}`, so it cannot stay in float.", name, _there_are(self.layers)
        for name, value in point.options.items():
            values = self.options.get(name, ())
            if value not in values:
                said = f"It may be {', '.join(map(str, values))}." if values else _there_are(self.options)
                yield f"`{name}` cannot be {value!r} in this space.", None, said

    def _unknown_structure(self, point: Point) -> Iterator[Objection]:
        for name in point.dropped:
            if name not in self.blocks:
                yield f"No residual branch that may go is called `{name}`.", name, _there_are(self.blocks)
        for name, kept in point.widths.items():
            group = self.groups.get(name)
            if group is None:
                yield f"No group of channels that may change is called `{name}`.", None, _there_are(self.groups)
            elif kept > group.size or group.cuts.near(kept) != kept:
                said = f"`{name}` has {group.size} and cannot keep {kept}."
                yield said, None, f"It may keep {', '.join(map(str, group.widths))}."

    def _unknown_ranks(self, point: Point) -> Iterator[Objection]:
        for name, rank in point.ranks.items():
            layer = self.layers.get(name)
            if layer is None or not layer.ranks:
                whole = [each.name for each in self.layers.values() if each.ranks]
                yield f"No layer that can be split is called `{name}`.", name, _there_are(whole)
                continue
            full = layer.full_rank(layer.reads.size, layer.makes.size)
            if rank >= full:
                yield f"Layer `{name}` has rank {full} as it is; {rank} saves nothing.", name, None

    @cached_property
    def smallest(self) -> Point:
        """Give the point with every branch gone and every group at its least allowed width."""
        widths = {name: group.widths[-1] for name, group in self.groups.items()}
        return self.normalise(Point(dropped=tuple(self.blocks), widths=widths))

    def uniform(
        self,
        share: float,
        *,
        dropped: tuple[str, ...] = (),
        precision: Precision = "float32",
        rank: float | None = None,
    ) -> Point:
        """Give the point at which every group keeps about the same share, and every layer that can is split to one of it."""
        widths = {name: group.nearest(share) for name, group in self.groups.items()}
        ranks = {
            layer.name: min(
                layer.ranks, key=lambda r: abs(r - rank * layer.full_rank(layer.reads.size, layer.makes.size))
            )
            for layer in self.layers.values()
            if rank is not None and layer.ranks
        }
        return self.normalise(Point(dropped=dropped, widths=widths, ranks=ranks, precision=precision))

    def random(self, rng: np.random.Generator) -> Point:
        """Draw a point: the share of branches that go, and of channels that stay, is drawn first, so that mild ones come too."""
        dropping, keeping, splitting = rng.uniform(0, 0.6), rng.uniform(0.3, 1.0), rng.uniform(-0.5, 0.5)
        dropped = tuple(name for name in self.blocks if rng.random() < dropping)
        widths = {
            name: group.nearest(float(np.clip(keeping + rng.normal(0, 0.15), 0.05, 1.0)))
            for name, group in self.groups.items()
        }
        ranks = {
            layer.name: int(rng.choice(layer.ranks))
            for layer in self.layers.values()
            if layer.ranks and rng.random() < splitting
        }
        precision: Precision = self.precisions[int(rng.integers(len(self.precisions)))]
        return self.normalise(Point(dropped=dropped, widths=widths, ranks=ranks, precision=precision))

    def neighbours(self, point: Point, rng: np.random.Generator, count: int = 8) -> tuple[Point, ...]:
        """Draw up to so many points that differ from this one in one respect."""
        own = self.normalise(point)
        moves = list(self._moves(own))
        found: dict[str, Point] = {own.model_dump_json(): own}
        for place in rng.permutation(len(moves)):
            if len(found) > count:
                break
            moved = self.normalise(own.model_copy(update=moves[place]))
            found.setdefault(moved.model_dump_json(), moved)
        return tuple(found.values())[1:]

    def _moves(self, point: Point) -> Iterator[dict[str, Any]]:
        for name in self.blocks:
            gone = set(point.dropped)
            yield {"dropped": tuple(gone - {name} if name in gone else gone | {name})}
        for name, group in self.groups.items():
            now = point.widths.get(name, group.size)
            for width in _beside(group.widths, now):
                yield {"widths": {**point.widths, name: width}}
        for name, layer in self.layers.items():
            if layer.ranks:
                whole = layer.full_rank(layer.reads.size, layer.makes.size)
                for rank in _beside((whole, *layer.ranks), point.ranks.get(name, whole)):
                    others = {other: kept for other, kept in point.ranks.items() if other != name}
                    yield {"ranks": others if rank == whole else {**others, name: rank}}
        yield from ({"precision": each} for each in self.precisions if each != point.precision)
        if point.precision not in {"float32", "float16"}:
            for name in self.layers:
                floats = set(point.in_float)
                yield {"in_float": tuple(floats - {name} if name in floats else floats | {name})}
        for name, values in self.options.items():
            now_at = point.options.get(name, values[0])
            yield from ({"options": {**point.options, name: value}} for value in values if value != now_at)

    # --- what a point is ---------------------------------------------------------------------------------------------

    def gone(self, point: Point) -> frozenset[str]:
        """Name the nodes that go with a point's branches."""
        return frozenset[str]().union(*(self.blocks[name].nodes for name in point.dropped if name in self.blocks))

    def layers_at(self, point: Point) -> tuple[LayerAt, ...]:
        """Give the layers that are left at a point, with their widths and ranks, in the graph's order."""
        gone = self.gone(point)
        kept = {name: (point.widths.get(name, group.size), group.size) for name, group in self.groups.items()}
        return tuple(
            LayerAt(layer, layer.reads.width(kept), layer.makes.width(kept), point.ranks.get(layer.name))
            for layer in self.layers.values()
            if layer.name not in gone
        )

    def macs_at(self, point: Point) -> int:
        """Give about how many multiply-accumulates are left; products of activations are counted as they were."""
        rest = self.macs - sum(layer.macs for layer in self.layers.values())
        return rest + round(sum(at.layer.macs * at.share for at in self.layers_at(point)))

    def describe(self, point: Point) -> str:
        """Say in one sentence for people what is left of the network."""
        parts = [f"{len(point.dropped)} of {len(self.blocks)} blocks dropped"] if point.dropped else []
        parts += self._told_widths(point)
        if point.ranks:
            parts.append(f"{counted(len(point.ranks), 'layer')} split")
        if point.precision != "float32":
            but = f" but for {counted(len(point.in_float), 'layer')}" if point.in_float else ""
            parts.append(_TOLD[point.precision] + but)
        parts += [f"{name.partition('.')[2].replace('_', ' ')} {value}" for name, value in point.options.items()]
        return ", ".join(parts) if parts else "the network as it is"

    def _told_widths(self, point: Point) -> Iterator[str]:
        gone = self.gone(point)
        by_kind: dict[str, list[WidthGroup]] = {}
        for group in self.groups.values():
            if not gone.issuperset(group.producers):
                by_kind.setdefault(group.kind, []).append(group)
        for kind, groups in by_kind.items():
            sizes = sum(group.size for group in groups)
            left = sum(point.widths.get(group.name, group.size) for group in groups)
            if left < sizes:
                yield f"{left / sizes:.0%} of the {_KINDS_TOLD.get(kind, kind)}"


_KINDS_TOLD = {"ffn": "hidden neurons", "recurrent": "recurrent units"}


def _beside(values: tuple[int, ...], now: int) -> tuple[int, ...]:
    """Give the nearest value above and the nearest below, of values from the largest to the least."""
    above = [value for value in values if value > now]
    below = [value for value in values if value < now]
    return (*above[-1:], *below[:1])


def _there_are(names: Mapping[str, Any] | list[str]) -> str | None:
    listed = list(names)
    if not listed:
        return "There is none in this space."
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"There is {', '.join(f'`{name}`' for name in listed[:_SHOWN])}{more}."
