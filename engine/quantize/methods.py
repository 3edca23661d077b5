"""The methods of quantization behind one interface, so that several can be applied one after another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from engine.contract import Context, Observe
from engine.graph.weights import lift_weights
from engine.quantize import dynamic, float16, static, weights
from engine.quantize.dynamic_plan import DynamicSettings
from engine.quantize.float16 import Float16Settings
from engine.quantize.static import StaticSettings
from engine.quantize.weights_plan import WeightsSettings
from engine.report.values import Change, Refusal


@dataclass(frozen=True)
class Method:
    """One method with its settings: prepare the network, see whether it applies, apply it, all in place."""

    name: str
    prepare: Callable[[ir.Model], None]
    check: Callable[[ir.Model], Refusal | None]
    apply: Callable[[ir.Model, Mapping[Observe, Any], Context], Change | Refusal]
    # Whether it fixes ranges of activations: it then has to come before all others.
    fixes_ranges: bool = False


def static_method(settings: StaticSettings) -> Method:
    """Fixed ranges."""

    def apply(model: ir.Model, observations: Mapping[Observe, Any], context: Context) -> Change | Refusal:
        return static.quantize(model, settings, observations, context)

    check = partial(static.check, settings=settings)
    prepare = partial(static.prepare, exclude=settings.exclude)
    return Method("quantize_static", prepare, check, apply, fixes_ranges=True)


def dynamic_method(settings: DynamicSettings) -> Method:
    """Ranges that are taken in every run."""

    def apply(model: ir.Model, _: Mapping[Observe, Any], context: Context) -> Change | Refusal:
        return dynamic.quantize(model, settings, context)

    prepare = partial(dynamic.prepare, exclude=settings.exclude)
    return Method("quantize_dynamic", prepare, partial(dynamic.check, settings=settings), apply)


def weights_method(settings: WeightsSettings) -> Method:
    """Weights in few bits."""

    def apply(model: ir.Model, _: Mapping[Observe, Any], context: Context) -> Change | Refusal:
        return weights.quantize(model, settings, context)

    prepare = partial(weights.prepare, settings=settings)
    return Method("quantize_weights", prepare, partial(weights.check, settings=settings), apply)


def float16_method(settings: Float16Settings) -> Method:
    """16-bit floats."""

    def apply(model: ir.Model, observations: Mapping[Observe, Any], context: Context) -> Change | Refusal:
        return float16.convert(model, settings, observations, context)

    return Method("float16", lift_weights, partial(float16.check, settings=settings), apply)
