"""The variant library of a network: what each single change costs in quality, bytes and work, and what widths cost in time.

It is measured part by part, each by itself, and stored as JSON under `key`; any worker of the target class takes any part.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engine.goal import Precision
from engine.search.terms import Structure, Times
from engine.search.values import Point
from engine.search.variants import Kind, Variant

# Part of the key: another way to measure is another library.
LIBRARY_VERSION = "2"

# Damages below this are taken for it where damages are interpolated, and their powers towards no change.
_LEAST_DAMAGE, _TOWARDS_NOTHING = 1e-9, 2.0
# What is assumed of a change of which nothing is known yet.
_UNKNOWN = 0.2


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class StructurePart(_Value):
    """The network itself."""

    part: Literal["structure"] = "structure"
    structure: Structure


class DamagePart(_Value):
    """Variants of one subject; of a precision also how the damage is spread over layers, as shares of it."""

    part: Literal["damage"] = "damage"
    variants: tuple[Variant, ...]
    layers: dict[str, float] = Field(default_factory=dict)


class TimesPart(_Value):
    """Composed networks in one precision, timed on the target; several parts of one precision go together."""

    part: Literal["times"] = "times"
    times: Times


Part = StructurePart | DamagePart | TimesPart
_PART: TypeAdapter[Part] = TypeAdapter(
    Annotated[Part, Field(discriminator="part")], config=ConfigDict(defer_build=True)
)


class VariantLibrary(_Value):
    """All parts together."""

    structure: Structure
    variants: tuple[Variant, ...] = ()
    # By precision: which share of its damage each layer is to blame for.
    layers: dict[Precision, dict[str, float]] = Field(default_factory=dict)
    times: dict[Precision, Times] = Field(default_factory=dict)

    @classmethod
    def of(cls, pieces: Mapping[str, Mapping[str, Any]]) -> "VariantLibrary":
        """Put parts together as they were measured, by name; the order does not matter.

        Raises ValueError if the network's structure is not among them.
        """
        read = {name: _PART.validate_python(piece) for name, piece in sorted(pieces.items())}
        structure = next((part.structure for part in read.values() if isinstance(part, StructurePart)), None)
        if structure is None:
            raise ValueError("The library has no part `structure`: measure it first.")
        damages = [part for part in read.values() if isinstance(part, DamagePart)]
        return cls(
            structure=structure,
            variants=tuple(variant for part in damages for variant in part.variants),
            layers={
                variant.subject: part.layers
                for part in damages
                for variant in part.variants
                if variant.kind == "precision"
            },
            times=_joined(part.times for part in read.values() if isinstance(part, TimesPart)),
        )

    def damage(self, point: Point) -> float:
        """Add up the damages of a point's variants; infinite where one of them cannot be made."""
        return sum(self._damages(point))

    def width_damage(self, group: str, kept: int) -> float:
        """Give what it costs that a group keeps so many; between measured widths log damage goes straight over log share.

        Of a group that was not measured yet it is what others lose at the same share.
        """
        full = self.structure.full[group]
        measured = self._measured.get(("width", group))
        if measured is not None:
            return _between(measured, kept, full)
        if kept >= full:
            return 0.0
        others = [
            _between(found, round(kept / full * self.structure.full[name]), self.structure.full[name])
            for (kind, name), found in self._measured.items()
            if kind == "width"
        ]
        return _typical(others) or _UNKNOWN * (1 - kept / full) ** _TOWARDS_NOTHING

    def block_damage(self, block: str) -> float:
        """Give what it costs that a residual branch is gone."""
        return self._alone("block", block)

    def rank_damage(self, layer: str, rank: int) -> float:
        """Give what it costs that a layer has this rank: that of the nearest one that was measured and is not higher."""
        measured = sorted(self._measured.get(("rank", layer), {}).items())
        if not measured:
            return self._alone("rank", layer)
        return next((damage for value, damage in reversed(measured) if value <= rank), measured[0][1])

    def precision_damage(self, precision: Precision, in_float: tuple[str, ...] = ()) -> float:
        """Give what a precision costs where these layers stay in float."""
        if precision == "float32":
            return 0.0
        shares = self.layers.get(precision, {})
        return self._alone("precision", precision) * max(0.0, 1 - sum(shares.get(layer, 0.0) for layer in in_float))

    def precisions(self) -> tuple[Precision, ...]:
        """List the precisions that a network can be made in, as far as it was tried."""
        failed = {each.subject for each in self.variants if each.kind == "precision" and each.failed is not None}
        return tuple(name for name, times in self.times.items() if name not in failed and times.failed is None)

    def _damages(self, point: Point) -> Iterator[float]:
        gone = {term.layer for term in self.structure.terms if set(term.blocks) & set(point.dropped)}
        alive = {
            group for term in self.structure.terms if not set(term.blocks) & set(point.dropped) for group in term.groups
        }
        yield from (self.block_damage(block) for block in point.dropped)
        yield from (self.width_damage(group, kept) for group, kept in point.widths.items() if group in alive)
        yield from (self.rank_damage(layer, rank) for layer, rank in point.ranks.items() if layer not in gone)
        yield self.precision_damage(point.precision, point.in_float)

    @cached_property
    def _measured(self) -> dict[tuple[Kind, str], dict[int, float]]:
        """Give damages by what is changed, and by width or rank; 0 where there is neither."""
        found: dict[tuple[Kind, str], dict[int, float]] = {}
        for each in self.variants:
            found.setdefault((each.kind, each.subject), {})[each.value or 0] = each.harm
        return found

    def _alone(self, kind: Kind, subject: str) -> float:
        """Give the damage of what has one variant; where that was not measured yet, what others of its kind lose."""
        measured = self._measured.get((kind, subject))
        if measured:
            return next(iter(measured.values()))
        others = [harm for (other, _), found in self._measured.items() if other == kind for harm in found.values()]
        return _typical(others) or _UNKNOWN


def _typical(damages: Sequence[float]) -> float | None:
    finite = [each for each in damages if math.isfinite(each)]
    return median(finite) if finite else None


def _joined(found: Iterable[Times]) -> dict[Precision, Times]:
    """Put together what was timed in each precision.

    Integers beside floats read differently while a machine is busy. Each part has timed the whole network in its precision, and
    is scaled so that this reads the same in all.
    """
    parts: dict[Precision, list[Times]] = {}
    for times in found:
        parts.setdefault(times.precision, []).append(times)
    return {precision: _steadied(precision, each) for precision, each in parts.items()}


def _steadied(precision: Precision, parts: Sequence[Times]) -> Times:
    wholes = [times.whole.ratio for times in parts if times.whole is not None]
    networks = [
        network if times.whole is None else network.scaled(median(wholes) / times.whole.ratio)
        for times in parts
        for network in times.networks
    ]
    return Times(
        precision=precision,
        networks=tuple(networks),
        layers=tuple(dict.fromkeys(layer for times in parts for layer in times.layers)),
        failed=next((times.failed for times in parts if times.failed is not None), None),
    )


def _between(measured: Mapping[int, float], kept: int, full: int) -> float:
    """Interpolate: damage grows about as a power of the share that is gone."""
    if kept >= full:
        return 0.0
    if kept in measured:
        return measured[kept]
    known = sorted((1 - value / full, damage) for value, damage in measured.items() if value < full)
    finite = [(gone, max(damage, _LEAST_DAMAGE)) for gone, damage in known if math.isfinite(damage)]
    gone = 1 - kept / full
    if not finite or (gone > finite[-1][0] and len(finite) < len(known)):
        return math.inf
    return float(np.exp(_line(np.log(np.array(finite)), math.log(gone))))


def _line(known: npt.NDArray[np.float64], at: float) -> float:
    """Go straight between points, and on beyond them; towards nothing quadratically: what goes first matters least."""
    (first, low), (last, high) = known[0], known[-1]
    if at < first:
        return float(low + _TOWARDS_NOTHING * (at - first))
    if at > last:
        slope = (high - known[-2, 1]) / (last - known[-2, 0]) if len(known) > 1 else _TOWARDS_NOTHING
        return float(high + max(slope, 0.0) * (at - last))
    return float(np.interp(at, known[:, 0], known[:, 1]))
