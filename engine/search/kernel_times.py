"""Times of real kernels on the target, by width and precision: networks of chosen widths are timed whole and kernel by kernel.

Kernels are timed where they work, inside of networks: what is fused with them, how tensors are laid out between them and what
is converted at borders of precision is then as it will be. Layers of one signature share what is measured. The time of a whole
network is taken beside the original, run by run in turn; onnxruntime's profile only says how it is spread over the terms.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnx
import onnx_ir as ir

from engine.contract import Context
from engine.goal import Precision
from engine.graph import io, linear
from engine.graph.linear import LinearLayer
from engine.measure.latency import judge_turns, take_turns
from engine.quantize.structure import latency_feeds
from engine.report.counted_time import counted
from engine.runtime import sessions, tracing
from engine.runtime.kernel_times import NodeRun
from engine.search.architecture import Architecture
from engine.search.sketch import Sketches
from engine.search.structure import terms_by_node
from engine.search.term_times import REST
from engine.search.terms import Timed, Times
from engine.search.values import Point

# Networks that are timed together: each beside the original in the same turns.
AT_ONCE = 5
# A round of turns takes so long, but of slow networks so many runs are made at least.
_SECONDS, _LEAST_RUNS, _MOST_RUNS = 2.0, 16, 400
_PROFILED_RUNS, _PROFILED_S, _WARM_UP = 24, 1.5, 4
# Shares of a precision whose kernels are timed at few widths only, and how many mixed networks.
_COARSE_SHARES, _COARSE_MIXED = (0.5,), 2
# The same of networks with so many multiply-accumulates: each takes long, and has many layers of one signature.
_LARGE_MACS, _LARGE_SHARES, _LARGE_MIXED = 200_000_000, (0.75, 0.5, 0.25), 4
# Of mixed networks: the share of their branches that is gone in every other one.
_DROPPED = 0.3
# What onnxruntime's optimiser appends to the name of the node, or of its output, that it made a kernel from.
_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_quant|_fused|/MatMulAddFusion|_MatMulIntegerToFloat|/DuplicateNode.*)+$")


def networks(architecture: Architecture, precision: Precision) -> tuple[tuple[Point, ...], ...]:
    """Choose the points that are timed in a precision, in rounds of a few that are timed together; each begins with the whole one.

    Besides that: the same share of every group, and mixed ones in which every group has every width once but all in different
    order (a Latin hypercube: McKay, Beckman and Conover, 1979), so that what a layer reads and what it makes are told apart;
    in half of them branches are gone, and in integers some layers stay in float.
    """
    shares, mixed = _amount(architecture, precision)
    points = [architecture.uniform(share, precision=precision) for share in shares]
    points += _mixed(architecture, precision, mixed)
    whole = Point(precision=precision)
    others = {point.model_dump_json(): point for point in map(architecture.normalise, points) if point != whole}
    found = list(others.values())
    return tuple((whole, *found[at : at + AT_ONCE - 1]) for at in range(0, max(len(found), 1), AT_ONCE - 1))


def _amount(architecture: Architecture, precision: Precision) -> tuple[tuple[float, ...], int]:
    """Say at which shares networks are timed, and how many mixed ones."""
    if not _is_fine(architecture, precision):
        return _COARSE_SHARES, _COARSE_MIXED
    if architecture.macs > _LARGE_MACS:
        return _LARGE_SHARES, _LARGE_MIXED
    widths = architecture.space.widths
    return tuple(share for share in widths if share < 1), len(widths)


def _is_fine(architecture: Architecture, precision: Precision) -> bool:
    """Say whether many widths are timed: of precisions that compute faster on this kind of network."""
    products = sum(layer.macs for layer in architecture.layers.values() if not layer.kernel)
    mostly = 2 * products > sum(layer.macs for layer in architecture.layers.values())
    return precision in {"float32", "static"} or (precision == "dynamic" and mostly)


def _mixed(architecture: Architecture, precision: Precision, count: int) -> Iterator[Point]:
    rng = np.random.default_rng(0)
    places = {name: rng.permutation(count) for name in architecture.groups}
    for number in range(count):
        widths = {
            name: group.widths[places[name][number] * len(group.widths) // count]
            for name, group in architecture.groups.items()
        }
        dropped = tuple(name for name in architecture.blocks if rng.random() < _DROPPED and number % 2)
        floats = tuple(name for name in architecture.layers if rng.random() < _DROPPED and number % 3 == 2)
        yield Point(
            widths=widths,
            dropped=dropped,
            precision=precision,
            in_float=floats,
        )


def timed(
    points: Sequence[Point],
    model: ir.Model,
    architecture: Architecture,
    context: Context,
    feeds: Sequence[sessions.Feed] = (),
) -> Times:
    """Time networks of these points, all in one precision, beside the original, and say what each term of them takes.

    `model` is the original as it was prepared; `feeds` are what is run, by default samples in the target's batch.

    Raises:
        ModelUnsupportedError: one of them cannot be made.
        EngineError: one does not run on the target.
    """
    sketches = Sketches(model, architecture, context)
    made = [sketches.make(point) for point in points]
    timing = _Timing(terms_by_node(model, architecture), feeds or latency_feeds(model, context), context)
    # Of a network that has them all.
    stored = dict.fromkeys(
        name
        for point, network in zip(points, made, strict=True)
        if not (point.dropped or point.in_float)
        for name in _stored(model, network)
        if name in architecture.layers
    )
    return Times(precision=points[0].precision, networks=tuple(timing.run(points, made)), layers=tuple(stored))


def _stored(model: ir.Model, made: ir.Model) -> Iterator[str]:
    """Name the layers whose weights are not stored as floats any more."""
    floats = {value.name for _, value in io.initializers(made) if value.dtype == ir.DataType.FLOAT}
    for node in model.graph:
        layer = linear.read(node)
        if isinstance(layer, LinearLayer) and layer.weight.name not in floats:
            yield layer.name


@dataclass(frozen=True)
class _Timing:
    terms: Mapping[str, str]
    feeds: Sequence[sessions.Feed]
    context: Context

    def run(self, points: Sequence[Point], made: Sequence[ir.Model]) -> Iterator[Timed]:
        packed = [io.to_bytes(network) for network in made]
        ratios = self._race(packed)
        for point, network, (ratio, noise, ms) in zip(points, packed, ratios, strict=True):
            spread = self._spread(network)
            total = sum(spread.values())
            yield Timed(
                dropped=point.dropped,
                widths=dict(point.widths),
                in_float=point.in_float,
                ratio=ratio,
                noise=noise,
                size_bytes=len(network),
                ms=ms,
                kernels_ms=total,
                terms={term: ratio * each / total for term, each in spread.items()},
            )

    def _race(self, packed: Sequence[bytes]) -> list[tuple[float, float, float]]:
        """Give each network's time as a share of the original's, how far that is from itself, and the time in ms."""
        context, target = self.context, self.context.target
        original = io.to_bytes(self.context.original)
        with context.working():
            opened = {name: sessions.session(original, target) for name in ("original", "original again")}
            opened |= {str(number): sessions.session(network, target) for number, network in enumerate(packed)}
        with context.measuring():
            turns = take_turns(
                opened, self.feeds, seconds=_SECONDS, min_runs=_LEAST_RUNS, max_runs=_MOST_RUNS, precision=0.01
            )
        compared = [judge_turns(turns, str(number), target, {}) for number in range(len(packed))]
        times = [(counted(each), each.compressed.p50_ms) for each in compared]
        return [(each.ratio.value, max(each.noise.high - 1, 1 - each.noise.low), ms) for each, ms in times]

    def _spread(self, network: bytes) -> dict[str, float]:
        """Give the milliseconds of a network's kernels by term."""
        target = self.context.target
        with self.context.measuring():
            runs = tracing.profile(network, target, self.feeds, _PROFILED_RUNS, seconds=_PROFILED_S)
        owners = _owners(network, self.terms, self.context)
        found: dict[str, float] = {}
        for name, microseconds in _by_kernel(runs[min(_WARM_UP, len(runs) // 2) :]).items():
            term = owners.get(name, REST)
            found[term] = found.get(term, 0.0) + microseconds / 1e3
        return found


def _by_kernel(runs: Sequence[Sequence[NodeRun]]) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for run in runs:
        for node in run:
            times.setdefault(node.node, []).append(node.microseconds)
    # A kernel inside of a loop runs more than once.
    return {name: median(each) * len(each) / len(runs) for name, each in times.items()}


def _owners(network: bytes, terms: Mapping[str, str], context: Context) -> dict[str, str]:
    """Say which term each kernel of the optimised graph belongs to: by its name, by what it makes, or by what it reads.

    Kernels that only convert or lay out anew have names that nobody knows: they go with what made their input.
    """
    if context.target.provider != "cpu":
        return dict(terms)
    graph = onnx.load_model_from_string(tracing.optimised_graph(network, context.target)).graph
    made_by: dict[str, str] = {}
    found: dict[str, str] = {}
    for node in graph.node:
        names = [node.name, *node.output]
        known = next((terms[plain] for name in names if (plain := _SUFFIX.sub("", name)) in terms), None)
        if known is None:
            known = next((made_by[name] for name in reversed(node.input) if name in made_by), REST)
        found[node.name] = known
        made_by |= dict.fromkeys(node.output, known)
    return found
