"""The work of the `mixed_precision` pass: make few networks, race them side by side, keep the best that is good enough."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from engine.calibrate import Part, Range
from engine.calibrate.observe import fixed_batch
from engine.contract import Context, Observe, Pass
from engine.data.subsets import First
from engine.errors import EngineError
from engine.graph import io
from engine.graph.names import require_nodes
from engine.measure.acceptance import losses
from engine.measure.quality import Evaluator
from engine.quantize import regions, types
from engine.quantize.plan import make_plan
from engine.quantize.sensitivity import sensitivities
from engine.report.values import Change, Quality, Refusal
from engine.runtime import processor, sessions

if TYPE_CHECKING:
    from engine.passes.mixed_precision import MixedPrecision

# Several networks are in memory at a time.
_LARGEST_BYTES = 1 << 30
# What a race of a few seconds can tell from noise.
_GAIN = 0.02
_AS_FAST = 1.03
_JUDGED_SAMPLES = 256
_FEWEST_SAMPLES = 2
_SENSITIVITY_SAMPLES = 8
# On few samples a candidate may disagree more often than it may lose: most flips are between equals.
_FLIPS_PER_DROP = 3.0
_DEFAULT_DROP = 0.01
_LEAST_SQNR_DB = 20.0
# Weights of the border's cost: conversions also move what the profile does not charge them with.
_BORDERS = (1.0, 2.5)
_MATRIX = frozenset({"MatMul", "Gemm"})
_FLOAT = "float32"
# Rows of a table are looked up, not multiplied: finer blocks cost no time.
_TABLE_GROUP = 16
_SHARES = frozenset({"top1", "top5", "f1", "iou"})


@dataclass
class Contender:
    """One network that could be the result, and what is known of it so far."""

    name: str
    model: ir.Model
    said: str
    details: Mapping[str, Any] = field(default_factory=dict)
    in_float: tuple[str, ...] = ()
    # Whether layers compute in integers, or are only stored in fewer bits.
    integers: bool = True
    size: int = 0
    time: float = 1.0
    fidelity: dict[str, float] = field(default_factory=dict)
    quality: Sequence[Quality] = ()
    why_not: str | None = None

    def facts(self) -> dict[str, Any]:
        """Give JSON values for the front."""
        judged = {
            each.metric: {"compressed": round(each.compressed, 6), "difference": each.difference}
            for each in self.quality
        }
        return {
            "name": self.name,
            "what": self.said,
            "size_bytes": self.size,
            "relative_time": round(self.time, 4),
            "calibration": {name: round(value, 5) for name, value in self.fidelity.items()},
            "held_out": judged,
            "why_not": self.why_not,
        }


def prepare(model: ir.Model) -> None:
    """Bring the network into the form that all candidates start from."""
    _static().prepare(model)
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    for node in model.graph.all_nodes():
        if not node.name:
            node.name = io.unused_name(taken, f"{node.op_type}_")


def check(model: ir.Model, step: "MixedPrecision") -> Refusal | None:
    """Refuse what no candidate can be made of."""
    require_nodes(model, step.exclude)
    if io.weight_bytes(model) > _LARGEST_BYTES:
        return Refusal(
            code="unsupported",
            reason="The weights take more than 1 GiB, and this pass holds several networks in memory.",
            hint="Use quantize_weights or quantize_dynamic, which stream weights from disk to disk.",
        )
    refusals = [made.check(model) for made in (_static(), _dynamic(step.exclude), _weights(8, step.exclude))]
    return (
        refusals[0]
        if all(refusals)
        else next((each for each in refusals if each and each.code == "already_done"), None)
    )


def observes(model: ir.Model, step: "MixedPrecision") -> Sequence[Observe]:
    """Ask for the ranges of all tensors that any candidate may quantize."""
    if not {"static", "regions"} & set(step.candidates):
        return ()
    plain = [Observe(str(value.name)) for value in make_plan(model, frozenset(step.exclude)).tensors]
    return list(dict.fromkeys([*_static(exclude=step.exclude).observes(model), *plain]))


def mix(
    model: ir.Model, step: "MixedPrecision", observations: Mapping[Observe, Any], context: Context
) -> Change | Refusal:
    """Put the best candidate in the network's place."""
    if context.calibration is None or len(context.calibration) < _FEWEST_SAMPLES:
        return Refusal(
            code="needs_data",
            reason=f"Candidates can only be compared on {_FEWEST_SAMPLES} or more calibration samples.",
        )
    jury = _Jury(model, step, context)
    contenders = [Contender(_FLOAT, model, "all layers in float32", size=_size(model))]
    maker = _Maker(model, step, observations, context, jury)
    contenders += maker.contenders()
    context.progress(0.7, f"racing {len(contenders)} networks")
    for contender, ratio in zip(contenders, context.race([each.model for each in contenders]), strict=True):
        contender.time = ratio
    chosen = _choose(contenders, step, jury, context)
    front = _front(contenders, jury)
    details = {
        "front": [{**each.facts(), "chosen": each is chosen, "on_front": each in front} for each in contenders],
        "sensitivity": maker.sensitivity,
        "processor": processor.cpu_profile().dot,
        "not_made": maker.failed,
    }
    if chosen is None or chosen is contenders[0]:
        return Refusal(code="no_gain", reason=_nothing_pays(contenders), hint=_hint(contenders, step), details=details)
    model.graph = chosen.model.graph
    model.ir_version = max(model.ir_version or 0, chosen.model.ir_version or 0)
    inner = {
        key: chosen.details[key] for key in ("layers", "in_float", "why", "conversions_left") if key in chosen.details
    }
    return Change(
        summary=(
            f"Of {len(contenders)} networks, this one is the best within the allowed loss: {chosen.said};"
            f" {1 / chosen.time:.2f}x as fast and {contenders[0].size / chosen.size:.2f}x smaller than before."
            + _said_of_integers(contenders, chosen)
        ),
        details={**inner, **details},
    )


class _Maker:
    """Makes the candidates; what fails to be made is named, not fatal."""

    def __init__(
        self,
        model: ir.Model,
        step: "MixedPrecision",
        observations: Mapping[Observe, Any],
        context: Context,
        jury: "_Jury",
    ) -> None:
        self._model, self._step, self._context, self._jury = model, step, context, jury
        self._inner = replace(context, progress=lambda _fraction, _message: None)
        self._observations = observations
        self._ranges = {
            request.tensor: found
            for request, found in observations.items()
            if isinstance(found, Range) and request == Observe(request.tensor)
        }
        self._all = make_plan(model, frozenset(step.exclude))
        self.sensitivity: dict[str, float] = {}
        self.failed: list[dict[str, str]] = []

    def contenders(self) -> list[Contender]:
        """Give all candidates that could be made, each once."""
        makers: dict[str, Callable[[], Iterator[Contender]]] = {
            "static": self._whole,
            "regions": self._regions,
            "dynamic": self._dynamic,
            "weights8": lambda: self._weights(8),
            "weights4": lambda: self._weights(4),
            "float16": self._half,
        }
        found: list[Contender] = []
        for number, kind in enumerate(self._step.candidates):
            self._context.progress(0.5 + 0.2 * number / len(self._step.candidates), f"making networks: {kind}")
            try:
                found.extend(makers[kind]())
            except EngineError as error:
                self.failed.append({"what": kind, "reason": error.message})
        for contender in found:
            _shorten_names(
                contender.model, io.value_names(self._model) | {str(node.name) for node in self._model.graph}
            )
            contender.size = _size(contender.model)
        return list({contender.size: contender for contender in reversed(found)}.values())[::-1]

    def _whole(self) -> Iterator[Contender]:
        """All layers in integers; and if that loses too much, the most sensitive ones in float, found by bisection."""
        everything = self._static_but(frozenset(), "static, all layers", rest=True)
        if everything is None:
            return
        yield everything
        best: Contender | None = everything
        if not self._jury.accepts(everything.fidelity) and self._all.layers:
            best = self._bisect(self._by_sensitivity())
            if best is not None:
                yield best
        if best is not None:
            yield from self._measured(best)
            steps = self._static_steps(frozenset(best.in_float), rest=True, embeddings=False)
            yield from self._with_small_tables(best, steps)

    def _measured(self, contender: Contender) -> Iterator[Contender]:
        """Let `quantize_static` measure which kinds of layers to leave in float, and how to lay out the others."""
        if not any(layer.node.op_type == "Conv" for layer in self._all.layers):
            return
        steps = self._static_steps(frozenset(contender.in_float), rest=True, measured=True)
        made = self._applied(self._model, steps, self._observations)
        if made is not None:
            name = f"{contender.name}, kinds of layers by measurement"
            yield replace(self._contender(name, name, made), in_float=contender.in_float)

    def _bisect(self, order: Sequence[str]) -> Contender | None:
        """Find the fewest of the most sensitive layers that must not have fixed ranges."""
        best: Contender | None = None
        low, high = 1, len(order) - 1
        while low <= high:
            count = (low + high) // 2
            self._context.progress(0.55, f"the {count} most sensitive of {len(order)} layers left out")
            name = f"static, {count} most sensitive layers not"
            tried = self._static_but(frozenset(order[:count]), name, rest=True)
            if tried is not None and self._jury.accepts(tried.fidelity):
                best, high = tried, count - 1
            else:
                low = count + 1
        return best

    def _by_sensitivity(self) -> list[str]:
        if not self.sensitivity:
            self._context.progress(0.52, "measuring each layer's share of the noise")
            choice = types.choose(processor.cpu_profile())
            found = sensitivities(
                self._model,
                self._ranges,
                choice,
                self._jury.feeds(_SENSITIVITY_SAMPLES),
                self._context.target,
                exclude=frozenset(self._step.exclude),
            )
            self.sensitivity = dict(sorted(found.items(), key=lambda each: -each[1]))
        return list(self.sensitivity)

    def _regions(self) -> Iterator[Contender]:
        """Only what the target's profile says is worth its conversions."""
        plan = self._all
        if self._context.target.provider != "cpu" or not any(layer.node.op_type == "Conv" for layer in plan.layers):
            return
        static = self._static_network(frozenset())
        if static is None:
            return
        feeds = self._jury.feeds(1)
        sizes = regions.tensor_sizes(self._model, plan, feeds[0], self._context.target)
        times = regions.measure((self._model, static[0]), plan, sizes, feeds, self._context.target)
        seen: set[frozenset[str]] = {frozenset()}
        for border in _BORDERS:
            names = regions.choose(plan, times, sizes, border=border)
            if names in seen or all(str(layer.node.name) in names for layer in plan.layers):
                continue
            seen.add(names)
            kept = sum(str(layer.node.name) not in names for layer in plan.layers)
            made = self._static_but(names, f"static where it pays, {kept} of {len(plan.layers)} layers")
            if made is not None:
                yield self._with_stored_weights(made)
                if not self._jury.accepts(made.fidelity):
                    yield from self._safer(names, kept)

    def _with_stored_weights(self, contender: Contender) -> Contender:
        """Store the convolutions that stay in float in 8 bits too: the runtime restores them when it loads the network."""
        made = self._applied(contender.model, [_weights(8, self._step.exclude, ("Conv",))])
        if made is None:
            return contender
        name = f"{contender.name}, other weights stored in 8 bits"
        smaller = self._contender(name, name, (made[0], {**made[1], **contender.details}))
        return smaller if self._jury.accepts(smaller.fidelity) else contender

    def _safer(self, names: frozenset[str], kept: int) -> Iterator[Contender]:
        """Take the more sensitive half of the regions' layers back to float."""
        inside = [name for name in self._by_sensitivity() if name not in names]
        back = frozenset(inside[: (kept + 1) // 2])
        if back and len(back) < kept:
            made = self._static_but(names | back, f"static where it pays, {kept - len(back)} least sensitive layers")
            if made is not None:
                yield made

    def _dynamic(self) -> Iterator[Contender]:
        """Matrix products with fresh ranges; convolutions, where there are any, with fixed ones."""
        made = self._applied(self._model, [_dynamic(self._step.exclude)])
        if made is not None:
            contender = self._contender("dynamic", "matrix products in integers with ranges taken in every run", made)
            yield contender
            yield from self._with_small_tables(contender, [_dynamic(self._step.exclude)])
        convolutions = [layer.node for layer in self._all.layers if layer.node.op_type == "Conv"]
        matrices = frozenset(str(layer.node.name) for layer in self._all.layers if layer.node.op_type in _MATRIX)
        if made is None or not convolutions or not matrices:
            return
        static = self._static_network(matrices)
        if static is None:
            return
        both = self._applied(static[0], [_dynamic(self._step.exclude)])
        if both is not None:
            said = "convolutions in integers with fixed ranges, matrix products with fresh ones"
            yield self._contender("static convolutions, dynamic products", said, both)

    def _with_small_tables(self, contender: Contender, steps: Sequence[Pass]) -> Iterator[Contender]:
        """Give the same with tables of embeddings in 4 bits: they are the larger part of small encoders."""
        tables = _weights(4, self._step.exclude, ("Gather",), group=_TABLE_GROUP, range_search=True)
        if "weights4" not in self._step.candidates or tables.check(io.copy(self._model)) is not None:
            return
        # Fixed ranges are for networks that are still in float, and fresh ones would take the tables first.
        static = [step for step in steps if step.needs_data]
        fresh = [step for step in steps if not step.needs_data]
        made = self._applied(self._model, [*static, tables, *fresh], self._observations)
        if made is not None:
            yield replace(
                self._contender(f"{contender.name}, tables in 4 bits", f"{contender.said}; tables in 4 bits", made),
                in_float=contender.in_float,
            )

    def _weights(self, bits: int) -> Iterator[Contender]:
        # In 8 bits, tables with scales in 16 bits are the smaller ones.
        operators = ("MatMul", "Gemm", "Conv") if bits == 8 else ("MatMul", "Gemm", "Conv", "Gather")
        steps = [_weights(bits, self._step.exclude, operators), _dynamic(self._step.exclude, ("Gather",))]
        made = self._applied(self._model, steps)
        if made is not None:
            yield self._contender(
                f"weights in {bits} bits", f"weights stored in {bits} bits, computed in float32", made, integers=False
            )

    def _half(self) -> Iterator[Contender]:
        from engine.passes.float16 import Float16  # noqa: PLC0415  # passes import their work, which is this module

        step = Float16(exclude=self._step.exclude)
        ranges = (
            self._context.observe(self._model, step.observes(self._model))
            if self._context.target.provider != "cpu"
            else {}
        )
        made = self._applied(self._model, [step], ranges)
        if made is not None:
            yield self._contender("float16", "weights stored in 16 bits", made, integers=False)

    def _static_but(self, in_float: frozenset[str], name: str, *, rest: bool = False) -> Contender | None:
        made = self._static_network(in_float, rest=rest)
        if made is None:
            return None
        contender = self._contender(name, name, made)
        contender.in_float = tuple(sorted(in_float))
        return contender

    def _static_network(self, in_float: frozenset[str], *, rest: bool = False) -> "_Made | None":
        """Quantize all but some layers; with `rest`, matrix products and tables among those get fresh ranges, not float."""
        return self._applied(self._model, self._static_steps(in_float, rest=rest), self._observations)

    def _static_steps(
        self, in_float: frozenset[str], *, rest: bool, embeddings: bool = True, measured: bool = False
    ) -> list[Pass]:
        exclude = (*self._step.exclude, *sorted(in_float))
        steps = [_static(exclude=exclude, measure_layers=measured, embeddings=embeddings)]
        if rest and "dynamic" in self._step.candidates:
            steps.append(_dynamic(self._step.exclude))
        return steps

    def _contender(self, name: str, said: str, made: "_Made", *, integers: bool = True) -> Contender:
        fidelity = self._jury.fidelity(made[0])
        return Contender(name, made[0], said, details=made[1], integers=integers, fidelity=fidelity)

    def _applied(
        self, model: ir.Model, steps: Iterable[Pass], observations: Mapping[Observe, Any] | None = None
    ) -> "_Made | None":
        """Apply passes to a copy; steps after the first may find nothing to do."""
        copy = io.copy(model)
        details: dict[str, Any] = {}
        for number, step in enumerate(steps):
            step.prepare(copy)
            refusal = step.check(copy)
            outcome = refusal or step.apply(copy, observations or {}, self._inner)
            if isinstance(outcome, Refusal):
                if number == 0:
                    self.failed.append({"what": str(type(step).model_fields["type"].default), "reason": outcome.reason})
                    return None
                continue
            assert isinstance(outcome.details, dict)
            for key, value in outcome.details.items():
                details[key] = [*details[key], *value] if key == "layers" and key in details else value
        return copy, details


_Made = tuple[ir.Model, dict[str, Any]]


class _Jury:
    """Judges candidates on calibration samples that set no range, and finally on the job's held-out ones."""

    def __init__(self, model: ir.Model, step: "MixedPrecision", context: Context) -> None:
        assert context.calibration is not None
        self._context = context
        run = fixed_batch(model, context.calibration) or 1
        part = Part(context.calibration, held_out=True, run=run)
        self._samples = First(part if len(part) >= max(2, run) else context.calibration, _JUDGED_SAMPLES)
        self._evaluator = Evaluator(sessions.session(io.to_bytes(model), context.target), self._samples)
        self._run = run
        drops = [gate.value for gate in context.gates if gate.rule == "max_drop"]
        self.drop = step.max_drop if step.max_drop is not None else min(drops, default=_DEFAULT_DROP)
        self._asked = step.max_drop is not None

    def feeds(self, count: int) -> list[Mapping[str, Any]]:
        """Give some samples, as batches of the size that latency is measured at."""
        return list(islice(self._samples.batches(self._run), count))

    def fidelity(self, model: ir.Model) -> dict[str, float]:
        """Give the fidelity metrics on the calibration samples."""
        return {
            each.metric: each.compressed
            for each in self._evaluator.evaluate(sessions.session(io.to_bytes(model), self._context.target))
        }

    def accepts(self, fidelity: Mapping[str, float]) -> bool:
        """Say whether a candidate is near enough to the original to be worth a judgement on held-out samples."""
        agreement = fidelity.get("top1_agreement")
        if agreement is not None:
            # One sample may always flip: fewer samples than 1 / drop could not tell otherwise.
            allowed = max(_FLIPS_PER_DROP * self.drop, 1 / len(self._samples))
            return 1 - agreement <= allowed + 1e-9
        return fidelity.get("sqnr_db", np.inf) >= _LEAST_SQNR_DB

    def finds_fault(self, contender: Contender) -> str | None:
        """Judge on the job's held-out samples by its gates; give the reason against a candidate."""
        contender.quality = self._context.evaluate(contender.model)
        refusal = next(losses(contender.quality, self._context.gates), None)
        if refusal is not None:
            return refusal.reason.rstrip(".")
        judged = (each for each in contender.quality if each.metric in _SHARES and each.difference is not None)
        drop, metric = next(((-float(each.difference or 0.0), each.metric) for each in judged), (0.0, ""))
        if drop > self.drop:
            return f"{metric} drops by {100 * drop:.2f} points; {100 * self.drop:.2f} are allowed"
        return None

    @staticmethod
    def closeness(contender: Contender) -> float:
        """Give one number that is larger the nearer the outputs are to the original's."""
        return contender.fidelity.get("sqnr_db", np.inf)


def _choose(contenders: Sequence[Contender], step: "MixedPrecision", jury: _Jury, context: Context) -> Contender | None:
    """Go through the candidates from the best down; take the first that the held-out samples accept."""
    baseline, rest = contenders[0], contenders[1:]
    useful = [
        each
        for each in rest
        if (each.time < 1 - _GAIN and step.minimise == "latency")
        or (each.time <= 1 + _GAIN and each.size < baseline.size)
    ]
    for contender in rest:
        slow = contender.time > 1 + _GAIN
        contender.why_not = f"it takes {contender.time:.2f} times as long as float32" if slow else "it gains too little"
    for contender in useful:
        contender.why_not = "it is larger or slower than the chosen one"
    while useful:
        contender = _best(useful, step)
        useful.remove(contender)
        if not jury.accepts(contender.fidelity):
            contender.why_not = f"it is too far from the original: {_told(contender.fidelity)}"
            continue
        context.progress(0.75, f"judging on held-out samples: {contender.name}")
        contender.why_not = jury.finds_fault(contender)
        if contender.why_not is None:
            return contender
    return None


def _best(contenders: Sequence[Contender], step: "MixedPrecision") -> Contender:
    """Give the fastest; the smallest of those that are as fast as it, as far as a short race can tell."""
    if step.minimise == "size":
        return min(contenders, key=lambda each: each.size)
    fastest = min(each.time for each in contenders)
    return min((each for each in contenders if each.time <= fastest * _AS_FAST), key=lambda each: each.size)


def _front(contenders: Sequence[Contender], jury: _Jury) -> list[Contender]:
    """Give the candidates that no other one beats in time, size and closeness together."""

    def beaten(one: Contender, other: Contender) -> bool:
        pairs = [
            (other.time, one.time),
            (other.size, one.size),
            (-jury.closeness(other), -jury.closeness(one)),
        ]
        return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)

    return [one for one in contenders if not any(beaten(one, other) for other in contenders if other is not one)]


def _nothing_pays(contenders: Sequence[Contender]) -> str:
    tried = contenders[1:]
    if not tried:
        return "No quantized network could be made of it: keep float32."
    fastest = min(tried, key=lambda each: each.time)
    if fastest.time >= 1 - _GAIN:
        return (
            f"INT8 does not pay on this target: of {len(tried)} quantized networks the fastest ({fastest.name}) takes"
            f" {fastest.time:.2f} times as long as float32: keep float32."
        )
    return (
        f"Quantization within the allowed loss does not pay on this target: {fastest.name} takes {fastest.time:.2f} times as"
        f" long as float32, but {fastest.why_not or 'it gains too little'}: keep float32."
    )


def _said_of_integers(contenders: Sequence[Contender], chosen: Contender) -> str:
    """Say why nothing computes in integers where that is so."""
    tried = [each for each in contenders[1:] if each.integers]
    if chosen.integers or not tried:
        return ""
    best = min(tried, key=lambda each: each.time)
    if best.time * _AS_FAST < chosen.time:
        return f" The fastest network that computes in integers ({best.name}) was left: {best.why_not}."
    return (
        f" Computing in integers does not pay on this target: the fastest such network ({best.name}) takes"
        f" {best.time:.2f} times as long as float32, this one {chosen.time:.2f} times."
    )


def _hint(contenders: Sequence[Contender], step: "MixedPrecision") -> str | None:
    smallest = min(contenders, key=lambda each: each.size)
    if step.minimise == "size" or smallest is contenders[0]:
        return None
    return f"The smallest is `{smallest.name}`: {contenders[0].size / smallest.size:.1f}x smaller at {smallest.time:.2f} of the time."


def _told(fidelity: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in fidelity.items())


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


def _size(model: ir.Model) -> int:
    copy = io.copy(model)
    io.strip(copy)
    return len(io.to_bytes(copy))


def _static(*, exclude: Sequence[str] = (), measure_layers: bool = True, embeddings: bool = True) -> Pass:
    from engine.passes.quantize_static import QuantizeStatic  # noqa: PLC0415  # passes import their work lazily

    return QuantizeStatic(exclude=tuple(dict.fromkeys(exclude)), measure_layers=measure_layers, embeddings=embeddings)


def _dynamic(exclude: Sequence[str], operators: Sequence[str] = ("MatMul", "Gemm", "LSTM", "Gather")) -> Pass:
    from engine.passes.quantize_dynamic import QuantizeDynamic  # noqa: PLC0415

    return QuantizeDynamic.model_validate({"exclude": exclude, "operators": operators})


def _weights(
    bits: int, exclude: Sequence[str], operators: Sequence[str] = ("MatMul", "Gemm", "Conv"), **more: Any
) -> Pass:
    from engine.passes.quantize_weights import QuantizeWeights  # noqa: PLC0415

    return QuantizeWeights.model_validate(
        {"bits": bits, "exclude": exclude, "method": "rtn", "operators": operators, **more}
    )
