"""Which layers are worth an integer kernel on this target, and how tensors are laid out: decided by races."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as common_passes

from engine.calibrate.observe import fixed_batch
from engine.graph import io
from engine.passes.contract import Context
from engine.quantize import types
from engine.quantize.explain import Key, layout_changes, times
from engine.quantize.improve import Design, build
from engine.quantize.plan import Layer, Plan, make_plan
from engine.quantize.rewrite import spatial_shape

if TYPE_CHECKING:
    from engine.passes.quantize_static import QuantizeStatic

# A layer goes back to float only for a gain that a short measurement can tell from noise.
_WORTHWHILE_GAIN = 0.01
# Products of activations in integers cost fidelity, so they have to give more.
_PRODUCTS_GAIN = 0.04
# Kernels work on four input channels at a time; below that, most of their work is padding.
_NARROW_CHANNELS = 4
_FEEDS = 4


@dataclass(frozen=True)
class Structure:
    """The design with the layers that stay in float, the reasons, and the races that decided."""

    design: Design
    in_float: Mapping[str, str] = field(default_factory=dict)
    races: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Variant:
    name: str
    design: Design
    least_gain: float
    in_float: frozenset[str] = frozenset()


def choose_structure(
    model: ir.Model, step: "QuantizeStatic", design: Design, choice: types.Choice, context: Context
) -> Structure:
    """Race the variants beside quantizing everything, and give the fastest that gains enough."""
    return _Chooser(model, design, choice, context, per_channel=step.per_channel).run()


def latency_feeds(model: ir.Model, context: Context) -> list[Mapping[str, Any]]:
    """Give feeds of the target's batch size, or of the one that the network fixes."""
    assert context.calibration is not None
    size = fixed_batch(model, context.calibration) or context.target.batch
    return list(islice(context.calibration.batches(size), _FEEDS))


@dataclass(frozen=True)
class _Chooser:
    model: ir.Model
    design: Design
    choice: types.Choice
    context: Context
    per_channel: bool

    def run(self) -> Structure:
        _infer_shapes(self.model)
        structure = self._raced()
        laid_out = self._laid_out(structure.design)
        return replace(structure, design=laid_out) if laid_out is not None else structure

    def _raced(self) -> Structure:
        variants = list(self._variants(make_plan(self.model, self.design.exclude)))
        if not variants:
            return Structure(self.design)
        ratios = self.context.race([self._built(self.design), *(self._built(each.design) for each in variants)])[1:]
        races = [
            {"variant": each.name, "time": round(float(ratio), 4)}
            for each, ratio in zip(variants, ratios, strict=False)
        ]
        gains = [
            1 - ratio if 1 - ratio >= each.least_gain else 0.0 for each, ratio in zip(variants, ratios, strict=False)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            return Structure(self.design, {}, races)
        won = variants[best]
        reason = f"measured: the network takes {gains[best]:.1%} less time with it in float"
        return Structure(won.design, dict.fromkeys(sorted(won.in_float), reason), races)

    def _built(self, design: Design) -> ir.Model:
        return build(self.model, design, self.choice, per_channel=self.per_channel)

    def _variants(self, plan: Plan) -> Iterator[_Variant]:
        design = self.design
        for name, family in self._families(plan).items():
            smaller = design.but(exclude=design.exclude | family)
            yield _Variant(f"{name} in float", smaller, _WORTHWHILE_GAIN, family)
        left = frozenset(str(node.name) for node in plan.left if node.name)
        if left and plan.layers:
            smaller = design.but(exclude=design.exclude | left)
            yield _Variant("products with weights on the left in float", smaller, _WORTHWHILE_GAIN, left)
        if make_plan(self.model, design.exclude, products=True).products:
            yield _Variant("products of activations too", design.but(products=True), _PRODUCTS_GAIN)

    def _laid_out(self, design: Design) -> Design | None:
        """Give the design with layouts written out, where ONNX Runtime then changes layouts less often: one can count that."""
        shared = shared_across_layouts(make_plan(self.model, design.exclude, products=design.products))
        if not shared or self.context.target.provider != "cpu":
            return None
        laid_out = design.but(treatment=design.treatment.but(channels_last=shared))
        before, after = (layout_changes(self._built(each), self.context.target) for each in (design, laid_out))
        return laid_out if after < before else None

    def _families(self, plan: Plan) -> dict[str, frozenset[str]]:
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

    def _slower_by_profile(self, plan: Plan) -> frozenset[str]:
        """Give the layers whose integer kernel takes longer than their float kernel."""
        if self.context.calibration is None or len(self.context.calibration) == 0:
            return frozenset()
        keys = [Key.of(layer) for layer in plan.layers if layer.node.name]
        feeds = latency_feeds(self.model, self.context)
        was, now = (
            times(network, keys, feeds, self.context.target).layers
            for network in (self.model, self._built(self.design))
        )
        return frozenset(name for name in now if name in was and now[name] > was[name])


def _infer_shapes(model: ir.Model) -> None:
    """Note the sizes of intermediate tensors in place; earlier steps strip them."""
    if io.weight_bytes(model) < io.SINGLE_FILE_BYTES:
        common_passes.ShapeInferencePass()(model)


def shared_across_layouts(plan: Plan) -> frozenset[str]:
    """Name the images that come from a float operator and are read by a convolution and by another integer operator."""
    layers = {layer.node for layer in plan.layers if layer.node.op_type == "Conv"}
    followers = {node for node in plan.followers if node.op_type in {"Add", "Mul", "Concat"}}
    found = set()
    for value, produced in plan.tensors.items():
        users = {use.node for use in value.uses()}
        if not produced and users & layers and users & followers and spatial_shape(value) is not None:
            found.add(str(value.name))
    return frozenset(found)


def _doubtful(plan: Plan) -> Iterator[tuple[str, frozenset[str]]]:
    """Give the families of layers whose integer kernels are often the slower ones: few input channels, depthwise."""
    narrow = {
        layer.node.name
        for layer in plan.layers
        if layer.node.op_type == "Conv" and not _is_depthwise(layer) and _input_channels(layer) < _NARROW_CHANNELS
    }
    depthwise = {layer.node.name for layer in plan.layers if _is_depthwise(layer)}
    for title, names in (("layers of few channels", narrow), ("depthwise layers", depthwise)):
        yield title, frozenset(name for name in names if name)


def _is_depthwise(layer: Layer) -> bool:
    group = layer.node.attributes.get("group")
    return layer.node.op_type == "Conv" and group is not None and group.as_int() > 1 and _input_channels(layer) == 1


def _input_channels(layer: Layer) -> int:
    assert layer.weight.const_value is not None
    return int(layer.weight.const_value.shape.numpy()[1])
