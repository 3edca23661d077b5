"""Candidates that may make a quantized network more faithful; each is kept only for a gain on samples to choose by."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import Histogram, Range
from engine.contract import Context, Observe
from engine.graph import io
from engine.quantize import equalise, gptq_and_bias, integer_types
from engine.quantize.effort import RefinementEffort
from engine.quantize.output_fidelity import OutputFidelity
from engine.quantize.ranges import METHODS, Method, search
from engine.quantize.static_plan import make_plan
from engine.quantize.static_writer import Overrides, StaticWriter
from engine.report.quantization_details import RefinementCandidate
from engine.runtime import heap

# Less is noise.
_LEAST_GAIN_DB = 0.1
_BY = "ranges by "
_ALPHAS = {"cross-layer equalisation": (0.5,), "SmoothQuant": (0.5, 0.75)}


@dataclass(frozen=True)
class Design:
    """All decisions about a quantized network."""

    exclude: frozenset[str]
    ranges: Mapping[str, Range]
    overrides: Overrides = field(default_factory=Overrides)
    products: bool = False

    def but(self, **changes: Any) -> "Design":
        """Give it with some parts replaced."""
        return replace(self, **changes)


def build(model: ir.Model, design: Design, types: integer_types.IntegerTypes, *, per_channel: bool) -> ir.Model:
    """Give a quantized copy."""
    return build_prefix(model, design, types, per_channel=per_channel).model


def build_prefix(
    model: ir.Model, design: Design, types: integer_types.IntegerTypes, *, per_channel: bool
) -> gptq_and_bias.Prefix:
    """Give a quantized copy with the names that the quantized tensors have in it once they are restored."""
    candidate = io.copy(model)
    plan = make_plan(candidate, design.exclude, products=design.products)
    writer = StaticWriter(candidate, plan, design.ranges, types, per_channel=per_channel, overrides=design.overrides)
    writer.run()
    return gptq_and_bias.Prefix(candidate, writer.restored_names())


def ranges_by(sources: Mapping[str, Range | Histogram], method: Method) -> dict[str, Range]:
    """Give every tensor's range by one method; where there is no histogram, what was seen."""
    return {
        name: search(source, method) if isinstance(source, Histogram) else source for name, source in sources.items()
    }


def statistics(model: ir.Model, exclude: frozenset[str]) -> list[Observe]:
    """Name what the candidates need besides histograms."""
    return [site.request for site in equalise.sites(make_plan(model, exclude))]


class Refinement:
    """Tries one candidate after another on top of those that were kept."""

    def __init__(
        self,
        model: ir.Model,
        observations: Mapping[Observe, Any],
        types: integer_types.IntegerTypes,
        context: Context,
        *,
        per_channel: bool,
        search_ranges: bool,
        effort: RefinementEffort,
    ) -> None:
        self._model = model
        self._bytes = io.weight_bytes(model)
        self._per_channel = per_channel
        self._search_ranges = search_ranges
        self.effort = effort
        self._attempts = (self._ranges, self._equalise, self._round) if effort.equalise else (self._ranges, self._round)
        self._types = types
        self._context = context
        self._observations = observations
        self._sources = sources(observations)
        self._method: Method = "min_max"
        self.fidelity = OutputFidelity.of(model, context)
        self.candidates: list[RefinementCandidate] = []
        self._best = -np.inf

    def run(self, design: Design) -> Design:
        """Give the best design; the model's weights are equalised in place where that gained."""
        if not self.fidelity.ready:
            return design
        self._best = self._score(self._model, design)
        for number, attempt in enumerate(self._attempts):
            self._context.progress(
                0.65 + 0.04 * number, f"trying {len(self.candidates) + 1}: {attempt.__name__.strip('_')}"
            )
            design = attempt(design)
        return design

    def _score(self, model: ir.Model, design: Design) -> float:
        # The network that was scored before is in nobody's hands.
        heap.give_back(self._bytes)
        with self._context.working():
            built = build(model, design, self._types, per_channel=self._per_channel)
        return self.fidelity.decibels(built)

    def _keep(self, name: str, found: float) -> bool:
        kept = found > self._best + _LEAST_GAIN_DB
        gain = round(found - self._best, 2)
        self.candidates.append(RefinementCandidate(candidate=name, sqnr_db=round(found, 2), gain_db=gain, kept=kept))
        if kept:
            self._best = found
        return kept

    def _ranges(self, design: Design) -> Design:
        if not self._search_ranges:
            return design
        for method in METHODS[1:]:
            tried = design.but(ranges=ranges_by(self._sources, method))
            if tried.ranges == design.ranges:
                continue
            if self._keep(f"{_BY}{method}", self._score(self._model, tried)):
                design, self._method = tried, method
        return design

    def _equalise(self, design: Design) -> Design:
        for kind, alphas in _ALPHAS.items():
            best: tuple[float, ir.Model, Design] | None = None
            for alpha, candidate, tried in self._equalised(kind, alphas, design):
                if self._keep(f"{kind}, alpha {alpha:g}", self._score(candidate, tried)):
                    best = alpha, candidate, tried
            if best is not None:
                # The same again on the model itself, whose nodes the caller knows.
                self._scale(self._model, kind, best[0], design)
                design = best[2]
        return design

    def _equalised(
        self, kind: str, alphas: tuple[float, ...], design: Design
    ) -> Iterator[tuple[float, ir.Model, Design]]:
        for alpha in alphas:
            candidate = io.copy(self._model)
            names = self._scale(candidate, kind, alpha, design)
            if not names:
                return
            requests = [Observe(name, "histogram") for name in names]
            seen = sources(self._context.observe(candidate, requests))
            yield alpha, candidate, design.but(ranges={**design.ranges, **ranges_by(seen, self._method)})

    def _scale(self, model: ir.Model, kind: str, alpha: float, design: Design) -> list[str]:
        """Equalise in place; give the tensors whose ranges changed."""
        found = [site for site in equalise.sites(make_plan(model, design.exclude)) if site.kind == kind]
        known = {
            request: value for request, value in self._observations.items() if request.statistic == "channel_range"
        }
        return [str(site.value.name) for site in found] if equalise.apply(model, found, known, alpha) else []

    def _round(self, design: Design) -> Design:
        """Try GPTQ's rounding, then correct the biases for whichever rounding won."""
        plan = make_plan(self._model, design.exclude, products=design.products)
        shifts: Mapping[str, npt.NDArray[np.float32]] = {}
        start = design
        for name, quantized in (("GPTQ rounding of weights", False), ("GPTQ rounding on quantized inputs", True)):
            found = gptq_and_bias.solve(
                self._model,
                plan,
                self._types,
                self._context,
                start.overrides,
                per_channel=self._per_channel,
                samples=self.effort.fit_samples,
                # What is kept so far is what the layers will read.
                prefix=build_prefix(self._model, design, self._types, per_channel=self._per_channel)
                if quantized
                else None,
            )
            shifts = shifts or found.shifts_nearest
            tried = start.but(overrides=start.overrides.but(weights=found.weights))
            if self._keep(name, self._score(self._model, tried)):
                design, shifts = tried, found.shifts_rounded
        tried = design.but(overrides=design.overrides.but(shifts=shifts))
        if self._keep("bias correction", self._score(self._model, tried)):
            design = tried
        return design


def kept_ranges(candidates: Iterable[RefinementCandidate]) -> Method:
    """Give the last method of setting ranges that was kept."""
    kept = [each.candidate.removeprefix(_BY) for each in candidates if each.kept and each.candidate.startswith(_BY)]
    return next((method for method in METHODS if kept and method == kept[-1]), METHODS[0])


def sources(observations: Mapping[Observe, Any]) -> dict[str, Range | Histogram]:
    """Give the range or histogram of each tensor."""
    found: dict[str, Range | Histogram] = {}
    for request, value in observations.items():
        if isinstance(value, Histogram) or (isinstance(value, Range) and request.tensor not in found):
            found[request.tensor] = value
    return found
