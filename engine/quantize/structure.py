"""Which layers are worth an integer kernel on this target, and how tensors are laid out: decided by races."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as common_passes

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.batches import padded
from engine.graph import io
from engine.graph.declaration import Declaration, undeclared
from engine.graph.linear import LinearLayer
from engine.quantize import integer_types
from engine.quantize.column_folding import AT_A_TIME, Fold
from engine.quantize.explain import ProfileKey, layout_changes, times
from engine.quantize.refinement import Design, build
from engine.quantize.static_plan import StaticPlan, make_plan
from engine.quantize.static_writer import spatial_shape
from engine.report.quantization_details import Race

# A layer goes back to float only for a gain that a short measurement can tell from noise.
_WORTHWHILE_GAIN = 0.01
# Products of activations in integers cost fidelity, so they have to give more.
_PRODUCTS_GAIN = 0.04
_FEEDS = 4
_GIVES_SEQUENCES = frozenset(
    {
        "Optional",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)
_HANDS_ON = frozenset({"Identity", "If", "Loop"})


@dataclass(frozen=True)
class Structure:
    """The design with the layers that stay in float, the reasons, and the races that decided."""

    design: Design
    in_float: Mapping[str, str] = field(default_factory=dict)
    races: tuple[Race, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    name: str
    design: Design
    least_gain: float
    in_float: frozenset[str] = frozenset()


def choose_structure(
    model: ir.Model, design: Design, types: integer_types.IntegerTypes, context: Context, *, per_channel: bool
) -> Structure:
    """Race the candidates beside quantizing everything, and give the fastest that gains enough."""
    return _Chooser(model, design, types, context, per_channel=per_channel).run()


def latency_feeds(model: ir.Model, context: Context) -> list[Mapping[str, Any]]:
    """Give feeds of the target's batch size, or of the one that the network fixes."""
    assert context.calibration is not None
    size = fixed_batch(model, context.calibration) or context.target.batch
    return [padded(feed, size) for feed in islice(context.calibration.batches(size), _FEEDS)]


@dataclass(frozen=True)
class _Chooser:
    model: ir.Model
    design: Design
    types: integer_types.IntegerTypes
    context: Context
    per_channel: bool

    def run(self) -> Structure:
        _infer_shapes(self.model)
        structure = self._raced()
        return replace(structure, design=self._laid_out(structure.design))

    def _raced(self) -> Structure:
        candidates = list(self._candidates(make_plan(self.model, self.design.exclude)))
        if not candidates:
            return Structure(self.design)
        ratios = self.context.race([self._built(self.design), *(self._built(each.design) for each in candidates)])[1:]
        races = tuple(
            Race(candidate=each.name, time=round(float(ratio), 4))
            for each, ratio in zip(candidates, ratios, strict=False)
        )
        gains = [
            1 - ratio if 1 - ratio >= each.least_gain else 0.0 for each, ratio in zip(candidates, ratios, strict=False)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            return Structure(self.design, {}, races)
        won = candidates[best]
        which = "it" if len(won.in_float) == 1 else f"these {len(won.in_float)} layers"
        reason = f"measured: the network takes {gains[best]:.1%} less time with {which} in float"
        return Structure(won.design, dict.fromkeys(sorted(won.in_float), reason), races)

    def _built(self, design: Design) -> ir.Model:
        with self.context.working():
            return build(self.model, design, self.types, per_channel=self.per_channel)

    def _candidates(self, plan: StaticPlan) -> Iterator[_Candidate]:
        design = self.design
        for name, family in self._families(plan).items():
            smaller = design.but(exclude=design.exclude | family)
            yield _Candidate(f"{name} in float", smaller, _WORTHWHILE_GAIN, family)
        folded = frozenset(str(layer.node.outputs[0].name) for layer in plan.layers if Fold.of(layer, plan))
        if folded and self.context.target.provider == "cpu":
            wide = design.but(overrides=design.overrides.but(folded=folded))
            yield _Candidate("layers of few channels over several columns at a time", wide, _WORTHWHILE_GAIN)
        left = frozenset(layer.node.name for layer in plan.left if layer.node.name)
        if left and plan.layers:
            smaller = design.but(exclude=design.exclude | left)
            yield _Candidate("products with weights on the left in float", smaller, _WORTHWHILE_GAIN, left)
        if make_plan(self.model, design.exclude, products=True).products:
            yield _Candidate("products of activations too", design.but(products=True), _PRODUCTS_GAIN)

    def _laid_out(self, design: Design) -> Design:
        """Write layouts out where ONNX Runtime then changes layouts less often: one can count that."""
        if self.context.target.provider != "cpu":
            return design
        plan = make_plan(self.model, design.exclude, products=design.products)
        for change in ({"channels_last": shared_across_layouts(plan)}, {"left_last": flattened(plan)}):
            if any(change.values()):
                tried = design.but(overrides=design.overrides.but(**change))
                before, after = (layout_changes(self._built(each), self.context.target) for each in (design, tried))
                design = tried if after < before else design
        return design

    def _families(self, plan: StaticPlan) -> dict[str, frozenset[str]]:
        """Name sets of layers that may be faster in float; never all of them."""
        found = {name: family for name, family in _doubtful(plan) if family}
        if not found:
            return {}
        if len(found) > 1:
            found["layers of few channels and depthwise"] = frozenset().union(*found.values())
        slower = self._slower_by_profile(plan)
        if slower and slower not in found.values():
            found["layers that are slower by profile"] = slower
        return {name: family for name, family in found.items() if len(family) < len(plan.layers)}

    def _slower_by_profile(self, plan: StaticPlan) -> frozenset[str]:
        """Give the layers whose integer kernel takes longer than their float kernel."""
        if self.context.calibration is None or len(self.context.calibration) == 0:
            return frozenset()
        keys = [ProfileKey.of(layer) for layer in plan.layers if layer.node.name]
        feeds = latency_feeds(self.model, self.context)
        was, now = (
            times(network, keys, feeds, self.context).layers for network in (self.model, self._built(self.design))
        )
        return frozenset(name for name in now if name in was and now[name] > was[name])


def _infer_shapes(model: ir.Model) -> None:
    """Note the sizes of intermediate tensors in place; earlier steps strip them.

    As far as they can be known: what is declared wrongly, and operators that onnx has no rule for, hide what is behind them alone.
    """
    if io.weight_bytes(model) < io.SINGLE_FILE_BYTES:
        declared = Declaration.of(model)
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(undeclared(model))
        declared.restore(model)
        _untype_sequences(model)


def _untype_sequences(model: ir.Model) -> None:
    """Take back what was noted of sequences of tensors: the type of one of them, which is not theirs."""
    sequences: set[ir.Value] = set()
    for node in model.graph.all_nodes():
        passes_on = node.op_type in _HANDS_ON and not sequences.isdisjoint(node.inputs)
        for value in node.outputs:
            if node.op_type in _GIVES_SEQUENCES or passes_on:
                value.type = value.shape = None
                sequences.add(value)


def shared_across_layouts(plan: StaticPlan) -> frozenset[str]:
    """Name the images that come from a float operator and are read by a convolution and by another integer operator."""
    layers = {layer.node for layer in plan.layers if layer.node.op_type == "Conv"}
    followers = {node for node in plan.followers if node.op_type in {"Add", "Mul", "Concat"}}
    found = set()
    for value, produced in plan.tensors.items():
        users = {use.node for use in value.uses()}
        if not produced and users & layers and users & followers and spatial_shape(value) is not None:
            found.add(str(value.name))
    return frozenset(found)


def flattened(plan: StaticPlan) -> frozenset[str]:
    """Name the means of whole images that are only flattened: their one pixel reads the same in every layout."""
    found = set()
    for node in plan.followers:
        value = node.outputs[0]
        inside = value in plan.tensors and not value.is_graph_output() and spatial_shape(value) is not None
        if node.op_type == "GlobalAveragePool" and inside and all(_flattens(use.node) for use in value.uses()):
            found.add(str(value.name))
    return frozenset(found)


def _flattens(node: ir.Node) -> bool:
    """Say whether a node makes rows of images, whatever the order of their axes."""
    if node.op_type == "Flatten":
        axis = node.attributes.get("axis")
        return axis is None or axis.as_int() == 1
    wanted = node.inputs[1] if node.op_type == "Reshape" else None
    shape = None if wanted is None else ir.convenience.get_const_tensor(wanted)
    return shape is not None and shape.size == 2 and int(shape.numpy()[1]) != 0


def _doubtful(plan: StaticPlan) -> Iterator[tuple[str, frozenset[str]]]:
    """Give the families of layers whose integer kernels are often the slower ones: few input channels, depthwise."""
    narrow = {
        layer.node.name
        for layer in plan.layers
        if layer.node.op_type == "Conv" and not _is_depthwise(layer) and layer.shape[1] < AT_A_TIME
    }
    depthwise = {layer.node.name for layer in plan.layers if _is_depthwise(layer)}
    for title, names in (("layers of few channels", narrow), ("depthwise layers", depthwise)):
        yield title, frozenset(name for name in names if name)


def _is_depthwise(layer: LinearLayer) -> bool:
    return layer.groups > 1 and layer.shape[1] == 1
