"""What a point will cost before it is made, from the variant library, corrected by what composed networks really measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from engine.goal import Precision
from engine.search.correction import Correction, Seen
from engine.search.damage import damage_of
from engine.search.library import VariantLibrary
from engine.search.storage import Storage
from engine.search.term_times import TermTimes
from engine.search.terms import Term, Times, Widths
from engine.search.values import Point, Predicted, Told

if TYPE_CHECKING:
    from engine.search.architecture import Architecture

# Where no network was timed in a precision, its terms take the time of float ones.
_LEAST_RATIO = 1e-4
# A layer that is split takes so much of the whole one's time for being several kernels, beside its multiplications.
_SPLIT = 0.15
# Damage below this is noise.
_LEAST_DAMAGE = 1e-5
# How far a measured ratio and a measured damage may be from a smooth law, as a share.
_RATIO_NOISE, _DAMAGE_NOISE = 0.03, 0.3


@dataclass(frozen=True)
class Cost:
    """What one term adds to a network's costs; the time as a share of the original's."""

    latency_ratio: float
    size_bytes: float
    macs: int


class Prediction:
    """Costs of points. Terms add up; what they leave out is learnt from networks that were measured as a whole."""

    def __init__(self, library: VariantLibrary, told: Sequence[Told]) -> None:
        self.library = library
        self._structure = library.structure
        self._full = library.structure.full
        self._times = {precision: TermTimes(library.structure, times) for precision, times in library.times.items()}
        self._storage = {name: Storage.learnt(library.structure, times) for name, times in library.times.items()}
        self._told = [each for each in told if each.state == "succeeded" and each.values is not None]
        self._per_converted: dict[Precision, float] = {}
        self._per_converted |= {name: self._conversions(times) for name, times in library.times.items()}
        self._latency = Correction(self._latencies(), noise=_RATIO_NOISE)
        self._damage = Correction(self._damages(), noise=_DAMAGE_NOISE)

    @classmethod
    def of(cls, architecture: "Architecture", library: VariantLibrary, told: Sequence[Told]) -> Self:
        """Predict from a library and the trials that have ended."""
        del architecture
        return cls(library, told)

    def predict(self, point: Point) -> Predicted:
        """Give a point's costs: bytes and multiplications exactly, latency and damage as they are expected."""
        costs, seen = self._costs(point), self._features(point)
        time = self.fixed_ratio(point.precision) + sum(cost.latency_ratio for cost in costs)
        return Predicted(
            latency_ratio=max(self._latency.apply(time, seen), _LEAST_RATIO),
            size_bytes=round(sum(cost.size_bytes for cost in costs) + self.fixed_bytes(point.precision)),
            macs=sum(cost.macs for cost in costs),
            damage=self._damage.apply(self.library.damage(point), seen),
        )

    def alive(self, point: Point) -> list[Term]:
        """List the terms that a point has."""
        gone = set(point.dropped)
        return [term for term in self._structure.terms if gone.isdisjoint(term.blocks)]

    def cost(
        self,
        term: Term,
        precision: Precision,
        widths: Widths,
        *,
        rank: int | None = None,
        in_float: bool = False,
    ) -> Cost:
        """Give what one term takes at these widths, before any correction; a point's terms and `fixed` add up to it."""
        computed: Precision = "float32" if in_float else precision
        macs = term.macs_at(widths, self._full)
        size = self._bytes(term, precision, widths, in_float=in_float)
        ratio = self._time(term, computed, widths)
        if in_float and precision != "float32":
            ratio += self._per_converted.get(precision, 0.0) * self._converted(term, widths)
        if rank is not None and macs > 0:
            share = self._rank_share(term, widths, rank)
            size, macs, ratio = size * share, round(macs * share), ratio * min(1.0, _SPLIT + share)
        return Cost(ratio, size, macs)

    def fixed_ratio(self, precision: Precision) -> float:
        """Give the time that no term takes, as a share of the original's."""
        times = self._times.get(precision) or self._times.get("float32")
        return 0.0 if times is None else times.fixed

    def fixed_bytes(self, precision: Precision) -> float:
        """Give the bytes of a file beside its tensors."""
        storage = self._storage.get(precision)
        return self._structure.overhead_bytes if storage is None else storage.fixed

    # Costs of terms

    def _costs(self, point: Point) -> list[Cost]:
        return [
            self.cost(
                term,
                point.precision,
                point.widths,
                rank=None if term.layer is None else point.ranks.get(term.layer),
                in_float=term.layer in point.in_float,
            )
            for term in self.alive(point)
        ]

    def _conversions(self, times: Times) -> float:
        """Give the time of converting an element: what networks took beyond their terms in which some layers stayed in float."""
        converted, beyond = [0.0], [0.0]
        for each in times.networks:
            if each.in_float:
                point = Point(
                    dropped=each.dropped, widths=each.widths, precision=times.precision, in_float=each.in_float
                )
                alive = [term for term in self.alive(point) if term.layer in each.in_float]
                converted.append(sum(self._converted(term, each.widths) for term in alive))
                beyond.append(each.ratio - self._raw_latency(point))
        total = float(np.square(converted).sum())
        return max(0.0, float(np.dot(converted, beyond)) / total) if total else 0.0

    def _converted(self, term: Term, widths: Widths) -> float:
        """Count the elements that a layer in float between integers has to have converted."""
        reads, gives = (size.at(widths, self._full) for size in (term.reads, term.gives))
        return float((reads + gives) * term.rows)

    def _time(self, term: Term, precision: Precision, widths: Widths) -> float:
        times = self._times.get(precision) or self._times.get("float32")
        return 0.0 if times is None else times.share(term, widths)

    def _bytes(self, term: Term, precision: Precision, widths: Widths, *, in_float: bool) -> float:
        storage = self._storage.get(precision)
        if storage is None:
            return sum(tensor.item * tensor.elements(widths, self._full) for tensor in term.tensors)
        return storage.of(term, self._structure, widths, in_float=in_float)

    def _rank_share(self, term: Term, widths: Widths, rank: int) -> float:
        """Say which share of a layer's weights is left at a rank."""
        weight = next((tensor for tensor in term.tensors if tensor.weight), None)
        if weight is None:
            return 1.0
        reads, gives = (size.at(widths, self._full) for size in (term.reads, term.gives))
        elements = weight.elements(widths, self._full)
        return min(1.0, rank * (elements / max(gives, 1) + gives) / max(elements, 1)) if reads else 1.0

    def _raw_latency(self, point: Point) -> float:
        return self.fixed_ratio(point.precision) + sum(cost.latency_ratio for cost in self._costs(point))

    # What was measured of whole networks

    def _features(self, point: Point) -> Seen:
        """Describe a point by what it keeps of everything, so that near points are near."""
        gone = set(point.dropped)
        blocks = sorted({block for term in self._structure.terms for block in term.blocks})
        kept = [point.widths.get(group, full) / full for group, full in self._full.items()]
        return Seen(point.precision, np.array([*kept, *(float(block not in gone) for block in blocks)]))

    def _latencies(self) -> list[tuple[Seen, float, float]]:
        found = []
        for precision, times in self.library.times.items():
            for each in times.networks:
                point = Point(dropped=each.dropped, widths=each.widths, precision=precision, in_float=each.in_float)
                found.append((self._features(point), self._raw_latency(point), each.ratio))
        for told in self._told:
            assert told.values is not None
            if told.values.latency is not None:
                point = told.proposal.point
                found.append((self._features(point), self._raw_latency(point), told.values.latency.value))
        return found

    def _damages(self) -> list[tuple[Seen, float, float]]:
        found = []
        for told in self._told:
            assert told.values is not None
            damage, point = damage_of(told.values.quality), told.proposal.point
            if damage is not None and told.proposal.level == "refit":
                expected = self.library.damage(point)
                if math.isfinite(expected) and min(expected, damage) > _LEAST_DAMAGE:
                    found.append((self._features(point), expected, damage))
        return found
