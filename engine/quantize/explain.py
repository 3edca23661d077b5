"""What became of each layer: how faithful its output is, what share of the time it takes, what conversions are left."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import sample_count, take
from engine.graph import io, row_sets
from engine.graph.activations import affordable_batch
from engine.graph.linear import LinearLayer
from engine.graph.quantized import CONVERSIONS, computes_in_integers
from engine.measure import latency
from engine.measure.kept_outputs import Folder, KeptOutput
from engine.measure.layer_costs import KERNEL_SUFFIX
from engine.quantize.static_plan import final_output
from engine.report.quantization_details import ConversionsLeft
from engine.runtime import heap, sessions, tracing
from engine.target import Target

_RUNS = 8
_IMAGE_RANK = 4

Feed = Mapping[str, Any]


@dataclass(frozen=True)
class ProfileKey:
    """Names by which a layer may be found in a profile, and the tensor that it hands on."""

    node: str
    names: frozenset[str]
    output: str

    @classmethod
    def of(cls, layer: LinearLayer) -> "ProfileKey":
        """Take the names before the network is changed."""
        output, clamp = final_output(layer.node)
        names = {layer.node.name, layer.node.outputs[0].name, output.name, clamp.name if clamp is not None else None}
        return cls(layer.name, frozenset(name for name in names if name), str(output.name))


@dataclass(frozen=True)
class Times:
    """Milliseconds of one run by layer, and of all nodes."""

    layers: Mapping[str, float]
    total: float


def times(model: ir.Model, keys: Iterable[ProfileKey], feeds: Sequence[Feed], context: Context) -> Times:
    """Profile a network; layers that the optimizer made unrecognisable are missing."""
    with context.measuring():
        profile = latency.per_op(io.to_bytes(model), feeds, context.target, runs=_RUNS)
    by_name: dict[str, float] = {}
    for cost in profile.by_node:
        if cost.node is not None:
            name = KERNEL_SUFFIX.sub("", cost.node)
            by_name[name] = by_name.get(name, 0.0) + cost.ms
    layers = {}
    for key in keys:
        found = [by_name[name] for name in key.names if name in by_name]
        if found:
            layers[key.node] = max(found)
    return Times(layers, sum(cost.ms for cost in profile.by_node))


@dataclass(frozen=True)
class Compared:
    """A network before and after."""

    before: ir.Model
    after: ir.Model
    context: Context

    def output_sqnr(self, outputs: Mapping[str, tuple[ProfileKey, str]], feeds: Sequence[Feed]) -> dict[str, float]:
        """Give per layer the signal to noise of its output in dB; `outputs` has its names in both networks."""
        pairs = {node: (key.output, new) for node, (key, new) in outputs.items()}
        signal, noise = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
        parts = list(self._affordable({name for name, _ in pairs.values()}, feeds))
        # One network is loaded at a time: what the first says is kept, in files where it is much.
        folder = Folder(None)
        try:
            wanted = {name: KeptOutput(folder) for name, _ in pairs.values()}
            for said in self._said(self.before, set(wanted), parts):
                for name, kept in wanted.items():
                    kept.append(said[name])
                # The next run's tensors would come on top, and the other network's.
                del said
            places = iter(range(len(parts)))
            # No enumerate: it holds what it gave last.
            for found in self._said(self.after, {new for _, new in pairs.values()}, parts):
                at = next(places)
                for node, (name, new) in pairs.items():
                    reference = wanted[name][at]
                    signal[node] += row_sets.energy(reference)
                    noise[node] += row_sets.noise(reference, found[new], name)
                del found
        finally:
            folder.close()
        return {node: _decibel(signal[node], noise[node]) for node in pairs}

    def _affordable(self, tensors: set[str], feeds: Sequence[Feed]) -> Iterator[Feed]:
        """Cut feeds into runs of so many samples as memory allows when all these tensors are given out."""
        samples = self.context.calibration
        if not feeds or samples is None or fixed_batch(self.before, samples) is not None:
            yield from feeds
            return
        giving, most = _giving(self.before, tensors), sample_count(feeds[0])
        size = affordable_batch(giving, samples, most, budget=self.context.run_bytes, target=self.context.untimed)
        for feed in feeds:
            yield from (take(feed, slice(at, at + size)) for at in range(0, sample_count(feed), size))

    def _said(self, model: ir.Model, tensors: set[str], feeds: Sequence[Feed]) -> Iterator[Mapping[str, Any]]:
        heap.give_back(io.weight_bytes(model))
        running = sessions.session(io.to_bytes(_giving(model, tensors)), self.context.untimed)
        for feed in feeds:
            with self.context.working():
                yield running.run(feed)

    def shares(self, keys: Sequence[ProfileKey], feeds: Sequence[Feed]) -> dict[str, dict[str, float]]:
        """Give per layer its share of the time of all nodes, before and after, as far as the profile names it."""
        found: dict[str, dict[str, float]] = {key.node: {} for key in keys}
        for name, model in (("time_share_before", self.before), ("time_share_after", self.after)):
            measured = times(model, keys, feeds, self.context)
            for node, ms in measured.layers.items():
                found[node][name] = round(ms / measured.total, 4) if measured.total > 0 else 0.0
        return found


def layout_changes(model: ir.Model, target: Target) -> int:
    """Count the Transposes of images in the graph that ONNX Runtime really runs."""
    optimised = onnx.load_model_from_string(tracing.optimised_graph(io.to_bytes(model), target))
    return sum(
        node.op_type == "Transpose" and any(len(attribute.ints) == _IMAGE_RANK for attribute in node.attribute)
        for node in optimised.graph.node
    )


def conversions_left(model: ir.Model, target: Target) -> ConversionsLeft | None:
    """Say what conversions ONNX Runtime leaves in the graph that it really runs, and how many integer kernels are in it."""
    if target.provider != "cpu" or io.weight_bytes(model) > io.SINGLE_FILE_BYTES:
        return None
    optimised = onnx.load_model_from_string(tracing.optimised_graph(io.to_bytes(model), target))
    kinds = [node.op_type for node in optimised.graph.node]
    readers: dict[str, list[str]] = {}
    for node in optimised.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    conversions = [node for node in optimised.graph.node if node.op_type in CONVERSIONS]
    # Quantized only to be restored at once: no integer kernel gains from it.
    lonely = [
        node.name
        for node in conversions
        if node.op_type == "QuantizeLinear" and set(readers.get(node.output[0], ())) == {"DequantizeLinear"}
    ]
    return ConversionsLeft(
        count=len(conversions),
        lonely_pairs=tuple(lonely),
        integer_kernels=sum(computes_in_integers(kind) for kind in kinds),
    )


def _giving(model: ir.Model, tensors: set[str]) -> ir.Model:
    copy = io.copy(model)
    present = {value.name for value in copy.graph.outputs}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in sorted(tensors) if name not in present)
    return copy


def _decibel(signal: float, noise: float) -> float:
    return min(10 * float(np.log10(signal / noise)), 200.0) if noise > 0 and signal > 0 else 200.0
