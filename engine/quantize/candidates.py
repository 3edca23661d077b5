"""The networks that `mixed_precision` makes and compares."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import onnx_ir as ir

from engine.calibrate import Range
from engine.contract import Context, Observe
from engine.data.subsets import First
from engine.errors import EngineError
from engine.graph import io
from engine.graph.digest import content_digest
from engine.graph.merging import merged
from engine.measure.acceptance import main_metrics
from engine.quantize import float16, integer_types, regions
from engine.quantize.candidate_fidelity import CandidateFidelity
from engine.quantize.dynamic_plan import DynamicSettings
from engine.quantize.dynamic_plan import make_plan as make_dynamic_plan
from engine.quantize.effort import Effort
from engine.quantize.float16 import Float16Settings
from engine.quantize.methods import Method, dynamic_method, float16_method, static_method, weights_method
from engine.quantize.ranges import Method as RangeMethod
from engine.quantize.refinement import kept_ranges
from engine.quantize.sensitivity import sensitivities
from engine.quantize.static import StaticSettings
from engine.quantize.static_plan import make_plan
from engine.quantize.weights_plan import WeightsSettings
from engine.report.quantization_details import (
    DynamicDetails,
    Float16Details,
    FrontCandidate,
    MethodDetails,
    MetricFound,
    NotMade,
    SameAs,
    StaticDetails,
    WeightsDetails,
)
from engine.report.values import Quality, Refusal
from engine.runtime import heap, processor

Kind = Literal["static", "regions", "dynamic", "weights8", "weights4", "float16"]

_SENSITIVITY_SAMPLES = 8
# Weights of the border's cost: conversions also move what the profile does not charge them with.
_BORDERS = (1.0, 2.5)
_MATRIX = frozenset({"MatMul", "Gemm"})
# Rows of a table are looked up, not multiplied: finer blocks cost no time.
_TABLE_GROUP = 16
# Weights that share a scale elsewhere.
_GROUP = 32
_DYNAMIC: tuple[Literal["MatMul", "Gemm", "LSTM", "Gather"], ...] = ("MatMul", "Gemm", "LSTM", "Gather")
_NO_REGION = "by the target's profile, converting to integers and back costs more than its integers save"
# Dynamic layers with fewer weights stay in float: they cost more.
_SMALLEST = 4096


@dataclass
class Candidate:
    """One network that could be the result, and what is known of it so far."""

    name: str
    model: ir.Model
    what: str
    steps: tuple[MethodDetails, ...] = ()
    # Layers without fixed ranges by name, and why.
    in_float: Mapping[str, str] = field(default_factory=dict)
    # Whether layers compute in integers, or are only stored in fewer bits.
    integers: bool = True
    size: int = 0
    # Time per run as a multiple of the given network's.
    time: float = 1.0
    fidelity: dict[str, float] = field(default_factory=dict)
    quality: Sequence[Quality] = ()
    why_not: str | None = None

    def told(self, *, chosen: bool, on_front: bool) -> FrontCandidate:
        """Give what the report says of it."""
        return FrontCandidate(
            name=self.name,
            what=self.what,
            size_bytes=self.size,
            relative_time=round(self.time, 4),
            fidelity={name: round(value, 5) for name, value in self.fidelity.items()},
            quality={
                each.metric: MetricFound(compressed=round(each.compressed, 6), difference=each.difference)
                for each in main_metrics(self.quality).values()
            },
            chosen=chosen,
            on_front=on_front,
            why_not=self.why_not,
        )


def static_settings(
    exclude: Iterable[str] = (),
    *,
    measure_layers: bool = True,
    embeddings: bool = True,
    known_ranges: RangeMethod | None = None,
    left_out: Mapping[str, str] | None = None,
    equalise: bool = True,
) -> StaticSettings:
    """Give how candidates are quantized with fixed ranges; with `known_ranges` by these, without refining anything."""
    return StaticSettings(
        per_channel=True,
        activations="auto",
        weights="auto",
        ranges=known_ranges or "auto",
        improve=known_ranges is None,
        embeddings=embeddings,
        measure_layers=measure_layers,
        exclude=tuple(dict.fromkeys(exclude)),
        left_out=left_out or {},
        equalise=equalise,
    )


def dynamic_settings(
    exclude: Iterable[str], operators: tuple[Literal["MatMul", "Gemm", "LSTM", "Gather"], ...] = _DYNAMIC
) -> DynamicSettings:
    """Give how candidates are quantized with ranges taken in every run."""
    return DynamicSettings(
        per_channel=True, weights="auto", operators=operators, smallest=_SMALLEST, exclude=tuple(exclude)
    )


def weights_settings(
    bits: Literal[4, 8],
    exclude: Iterable[str],
    operators: tuple[Literal["MatMul", "Gemm", "Conv", "Gather"], ...] = ("MatMul", "Gemm", "Conv"),
    *,
    group: int = _GROUP,
    range_search: bool = False,
) -> WeightsSettings:
    """Give how candidates store weights in few bits."""
    return WeightsSettings(
        bits=bits,
        group=group,
        method="rtn",
        symmetric=False,
        range_search=range_search,
        activation_order=False,
        format="matmul_nbits",
        accuracy="int8",
        operators=operators,
        exclude=tuple(exclude),
    )


def float16_settings(exclude: Iterable[str]) -> Float16Settings:
    """Give how candidates use 16-bit floats."""
    return Float16Settings(dtype="float16", compute="auto", keep_io=True, margin=2.0, exclude=tuple(exclude))


class CandidateMaker:
    """Makes the candidates; what fails to be made is named, not fatal."""

    def __init__(
        self,
        model: ir.Model,
        observations: Mapping[Observe, Any],
        context: Context,
        fidelity: CandidateFidelity,
        *,
        kinds: Sequence[Kind],
        exclude: Sequence[str],
        effort: Effort,
    ) -> None:
        self._model, self._kinds, self._exclude = model, kinds, tuple(exclude)
        self._context, self._fidelity = context, fidelity
        self._effort = effort
        refined_on = context.select if context.select is None else First(context.select, effort.refine_samples)
        self._inner = replace(context, progress=lambda _fraction, _message: None, select=refined_on)
        # The ranges that the first refined network kept, where the others are not refined again.
        self._known_ranges: RangeMethod | None = "min_max" if effort.refined == "none" else None
        self._observations = observations
        self._ranges = {
            request.tensor: found
            for request, found in observations.items()
            if isinstance(found, Range) and request == Observe(request.tensor)
        }
        self._all = make_plan(model, frozenset(exclude))
        self.sensitivity: dict[str, float] = {}
        self.not_made: list[NotMade] = []
        self.duplicates: list[SameAs] = []

    def candidates(self) -> list[Candidate]:
        """Give all candidates that could be made; of those that are the same network once more, the first."""
        makers: dict[Kind, Callable[[], Iterator[Candidate]]] = {
            "static": self._whole,
            "regions": self._regions,
            "dynamic": self._dynamic,
            "weights8": lambda: self._weights(8),
            "weights4": lambda: self._weights(4),
            "float16": self._half,
        }
        found: list[Candidate] = []
        for number, kind in enumerate(self._kinds):
            self._context.progress(0.5 + 0.2 * number / len(self._kinds), f"making networks: {kind}")
            try:
                found.extend(makers[kind]())
            except EngineError as error:
                self.not_made.append(NotMade(what=kind, reason=error.message))
        for candidate in found:
            _shorten_names(
                candidate.model, io.value_names(self._model) | {str(node.name) for node in self._model.graph}
            )
            with self._context.working():
                candidate.size = stored_size(candidate.model)
        distinct, self.duplicates = without_duplicates(found)
        return distinct

    def _whole(self) -> Iterator[Candidate]:
        """All layers in integers; and if that loses too much, the most sensitive ones in float, found by bisection."""
        everything = self._static_but({}, "static, all layers", rest=True)
        if everything is None:
            return
        yield everything
        best: Candidate | None = everything
        if not self._fidelity.accepts(everything.fidelity) and self._all.layers:
            best = self._bisect(self._by_sensitivity())
            if best is not None:
                yield best
        if best is not None:
            yield from self._measured(best)
            steps = self._static_steps(best.in_float, rest=True, embeddings=False)
            yield from self._with_small_tables(best, steps)

    def _measured(self, candidate: Candidate) -> Iterator[Candidate]:
        """Let `quantize_static` measure which kinds of layers to leave in float, and how to lay out the others."""
        if not any(layer.node.op_type == "Conv" for layer in self._all.layers):
            return
        steps = self._static_steps(candidate.in_float, rest=True, measured=True)
        made = self._applied(self._model, steps, self._observations)
        if made is not None:
            name = f"{candidate.name}, kinds of layers by measurement"
            yield replace(self._candidate(name, name, made), in_float=candidate.in_float)

    def _bisect(self, order: Sequence[str]) -> Candidate | None:
        """Find the fewest of the most sensitive layers that must not have fixed ranges."""
        best: Candidate | None = None
        low, high = 1, len(order) - 1
        for _ in range(self._effort.bisections):
            if low > high:
                break
            count = (low + high) // 2
            self._context.progress(0.55, f"the {count} most sensitive of {len(order)} layers left out")
            name = f"static, {count} most sensitive layers not"
            why = f"its rounding is among the {count} that move the outputs most"
            tried = self._static_but(dict.fromkeys(order[:count], why), name, rest=True)
            if tried is not None and self._fidelity.accepts(tried.fidelity):
                best, high = tried, count - 1
            else:
                low = count + 1
        return best

    def _by_sensitivity(self) -> list[str]:
        if not self.sensitivity:
            self._context.progress(0.52, "measuring each layer's share of the noise")
            types = integer_types.choose(processor.cpu_profile())
            found = sensitivities(
                self._model,
                self._ranges,
                types,
                self._fidelity.feeds(_SENSITIVITY_SAMPLES),
                self._context,
                exclude=frozenset(self._exclude),
            )
            self.sensitivity = dict(sorted(found.items(), key=lambda each: -each[1]))
        return list(self.sensitivity)

    def _regions(self) -> Iterator[Candidate]:
        """Only what the target's profile says is worth its conversions."""
        plan = self._all
        if self._context.target.provider != "cpu" or not any(layer.node.op_type == "Conv" for layer in plan.layers):
            return
        static = self._static_network({})
        if static is None:
            return
        feeds = self._fidelity.feeds(1)
        sizes = regions.tensor_sizes(self._model, plan, feeds[0], self._context)
        times = regions.measure((self._model, static[0]), plan, sizes, feeds, self._context)
        seen: set[frozenset[str]] = {frozenset()}
        for border in _BORDERS:
            names = regions.choose(plan, times, sizes, border=border)
            if names in seen or all(str(layer.node.name) in names for layer in plan.layers):
                continue
            seen.add(names)
            kept = sum(str(layer.node.name) not in names for layer in plan.layers)
            left_out = dict.fromkeys(sorted(names), _NO_REGION)
            made = self._static_but(left_out, f"static where it pays, {kept} of {len(plan.layers)} layers")
            if made is not None:
                yield self._with_stored_weights(made)
                if not self._fidelity.accepts(made.fidelity):
                    yield from self._safer(names, kept)

    def _with_stored_weights(self, candidate: Candidate) -> Candidate:
        """Store the convolutions that stay in float in 8 bits too: the runtime restores them when it loads the network."""
        made = self._applied(candidate.model, [weights_method(weights_settings(8, self._exclude, ("Conv",)))])
        if made is None:
            return candidate
        name = f"{candidate.name}, other weights stored in 8 bits"
        steps = without_taken_later([*candidate.steps, *made[1]])
        smaller = self._candidate(name, name, (made[0], steps))
        return smaller if self._fidelity.accepts(smaller.fidelity) else candidate

    def _safer(self, names: frozenset[str], kept: int) -> Iterator[Candidate]:
        """Take the more sensitive half of the regions' layers back to float."""
        inside = [name for name in self._by_sensitivity() if name not in names]
        back = frozenset(inside[: (kept + 1) // 2])
        if back and len(back) < kept:
            why = "its rounding moves the outputs more than that of the layers in integers"
            left_out = dict.fromkeys(sorted(names), _NO_REGION) | dict.fromkeys(sorted(back), why)
            made = self._static_but(left_out, f"static where it pays, {kept - len(back)} least sensitive layers")
            if made is not None:
                yield made

    def _dynamic(self) -> Iterator[Candidate]:
        """Matrix products with fresh ranges; convolutions, where there are any, with fixed ones."""
        made = self._applied(self._model, [dynamic_method(dynamic_settings(self._exclude))])
        if made is not None:
            candidate = self._candidate("dynamic", "matrix products in integers with ranges taken in every run", made)
            yield candidate
            yield from self._with_small_tables(candidate, [dynamic_method(dynamic_settings(self._exclude))])
        convolutions = [layer.node for layer in self._all.layers if layer.node.op_type == "Conv"]
        matrices = frozenset(str(layer.node.name) for layer in self._all.layers if layer.node.op_type in _MATRIX)
        if made is None or not convolutions or not matrices or not self._observations:
            return
        refused = make_dynamic_plan(self._model, dynamic_settings(self._exclude)).refused
        why = "its input's range is taken in every run"
        static = self._static_network({name: refused.get(name, why) for name in sorted(matrices)})
        if static is None:
            return
        both = self._applied(static[0], [dynamic_method(dynamic_settings(self._exclude))])
        if both is not None:
            what = "convolutions in integers with fixed ranges, matrix products with fresh ones"
            steps = without_taken_later([*static[1], *both[1]])
            yield self._candidate("static convolutions, dynamic products", what, (both[0], steps))

    def _with_small_tables(self, candidate: Candidate, steps: Sequence[Method]) -> Iterator[Candidate]:
        """Give the same with tables of embeddings in 4 bits: they are the larger part of small encoders."""
        tables = weights_method(weights_settings(4, self._exclude, ("Gather",), group=_TABLE_GROUP, range_search=True))
        if "weights4" not in self._kinds or tables.check(io.copy(self._model)) is not None:
            return
        # Fixed ranges are for networks that are still in float, and fresh ones would take the tables first.
        static = [step for step in steps if step.fixes_ranges]
        fresh = [step for step in steps if not step.fixes_ranges]
        made = self._applied(self._model, [*static, tables, *fresh], self._observations)
        if made is not None:
            yield replace(
                self._candidate(f"{candidate.name}, tables in 4 bits", f"{candidate.what}; tables in 4 bits", made),
                in_float=candidate.in_float,
            )

    def _weights(self, bits: Literal[4, 8]) -> Iterator[Candidate]:
        # In 8 bits, tables with scales in 16 bits are the smaller ones.
        operators: tuple[Literal["MatMul", "Gemm", "Conv", "Gather"], ...] = ("MatMul", "Gemm", "Conv")
        stored = weights_settings(bits, self._exclude, operators if bits == 8 else (*operators, "Gather"))
        steps = [weights_method(stored), dynamic_method(dynamic_settings(self._exclude, ("Gather",)))]
        made = self._applied(self._model, steps)
        if made is not None:
            yield self._candidate(
                f"weights in {bits} bits", f"weights stored in {bits} bits, computed in float32", made, integers=False
            )

    def _half(self) -> Iterator[Candidate]:
        settings = float16_settings(self._exclude)
        ranges = (
            self._context.observe(self._model, float16.observes(self._model, settings))
            if self._context.target.provider != "cpu"
            else {}
        )
        made = self._applied(self._model, [float16_method(settings)], ranges)
        if made is not None:
            yield self._candidate("float16", "weights stored in 16 bits", made, integers=False)

    def _static_but(self, in_float: Mapping[str, str], name: str, *, rest: bool = False) -> Candidate | None:
        made = self._static_network(in_float, rest=rest)
        if made is None:
            return None
        candidate = self._candidate(name, name, made)
        candidate.in_float = in_float
        return candidate

    def _static_network(self, in_float: Mapping[str, str], *, rest: bool = False) -> "_Made | None":
        """Quantize all but some layers; with `rest`, matrix products and tables among those get fresh ranges, not float."""
        return self._applied(self._model, self._static_steps(in_float, rest=rest), self._observations)

    def _static_steps(
        self, in_float: Mapping[str, str], *, rest: bool, embeddings: bool = True, measured: bool = False
    ) -> list[Method]:
        settings = static_settings(
            self._exclude,
            measure_layers=measured,
            embeddings=embeddings,
            known_ranges=self._known_ranges,
            left_out=in_float,
            equalise=self._effort.refined == "all",
        )
        steps = [static_method(settings)]
        if rest and "dynamic" in self._kinds:
            steps.append(dynamic_method(dynamic_settings(self._exclude)))
        return steps

    def _candidate(self, name: str, what: str, made: "_Made", *, integers: bool = True) -> Candidate:
        fidelity = self._fidelity.of(made[0])
        return Candidate(name, made[0], what, steps=made[1], integers=integers, fidelity=fidelity)

    def _applied(
        self, model: ir.Model, steps: Iterable[Method], observations: Mapping[Observe, Any] | None = None
    ) -> "_Made | None":
        """Apply methods to a copy; those after the first may find nothing to do."""
        # What was made before, and is in nobody's hands.
        heap.give_back(io.weight_bytes(model))
        copy = io.copy(model)
        done: list[MethodDetails] = []
        for number, step in enumerate(steps):
            step.prepare(copy)
            refusal = step.check(copy)
            outcome = refusal or step.apply(copy, observations or {}, self._inner)
            if isinstance(outcome, Refusal):
                if number == 0:
                    self.not_made.append(NotMade(what=step.name, reason=outcome.reason))
                    return None
            elif isinstance(outcome.details, StaticDetails | DynamicDetails | WeightsDetails | Float16Details):
                done.append(outcome.details)
                if isinstance(outcome.details, StaticDetails) and self._effort.refined == "first":
                    self._known_ranges = self._known_ranges or kept_ranges(outcome.details.candidates)
        return copy, without_taken_later(done)


_Made = tuple[ir.Model, tuple[MethodDetails, ...]]


def without_taken_later(steps: Sequence[MethodDetails]) -> tuple[MethodDetails, ...]:
    """Leave out of what the first methods left in float whatever a later one has quantized, and say nothing twice."""
    taken = {layer.node for step in steps if isinstance(step, DynamicDetails | WeightsDetails) for layer in step.layers}
    told: set[tuple[str, str]] = set()
    found: list[MethodDetails] = []
    for step in steps:
        if isinstance(step, Float16Details):
            found.append(step)
            continue
        left = [each for each in step.in_float if (each.node, each.reason) not in told]
        left = [each for each in left if each.node not in taken] if isinstance(step, StaticDetails) else left
        told |= {(each.node, each.reason) for each in left}
        found.append(step.model_copy(update={"in_float": tuple(left)}))
    return tuple(found)


def without_duplicates(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[SameAs]]:
    """Give the candidates that compute something of their own, in order, and the others with what they are once more."""
    first: dict[str, Candidate] = {}
    again: list[SameAs] = []
    for candidate in candidates:
        known = first.setdefault(content_digest(candidate.model), candidate)
        if known is not candidate:
            again.append(SameAs(name=candidate.name, same_as=known.name))
    return list(first.values()), again


def stored_size(model: ir.Model) -> int:
    """Give the bytes of a network's file."""
    copy = io.copy(model)
    io.strip(copy)
    return len(io.to_bytes(merged(copy)))


def _shorten_names(model: ir.Model, known: set[str]) -> None:
    """Give what passes have added names of a few letters: long ones are a noticeable share of a small file."""
    taken = io.value_names(model)
    for graph in model.graphs():
        kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
        for name, value in tuple(graph.initializers.items()):
            if name not in known and id(value) not in kept:
                graph.initializers.pop(name)
                value.name = io.unused_name(taken, "w")
                graph.initializers[str(value.name)] = value
        for node in graph:
            if node.name not in known:
                node.name = None
            for value in node.outputs:
                if value.name and value.name not in known and id(value) not in kept:
                    value.name = io.unused_name(taken, "t")
