"""Importance of channels by gradients, where PyTorch is there; this module loads none of it before it is asked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import onnx_ir as ir

from engine.contract import Context
from engine.errors import EngineError
from engine.graph.groups import Group
from engine.report.values import Refusal
from engine.train import training_support

if TYPE_CHECKING:
    from engine.train.gradients import Criterion

CRITERIA: tuple["Criterion", ...] = ("taylor", "fisher")
_WITHOUT = "Ask for the importance `reconstruction`, which needs no gradients"

Key = TypeVar("Key")


def objection(importance: str, context: Context) -> Refusal | None:
    """Refuse an importance by gradients that is asked for by name and cannot be had."""
    if importance not in CRITERIA or not context.has_data or training_support.installed():
        return None
    return Refusal(
        code="unsupported",
        reason=f"The importance `{importance}` takes gradients: {training_support.MISSING}",
        hint=f"{training_support.TRAINING_HINT} {_WITHOUT}.",
    )


def reason_against(context: Context) -> str | None:
    """Say why gradients are not tried; None: they are."""
    if not context.has_data or context.calibration is None:
        return "gradients are taken on calibration samples, and the job has none"
    return None if training_support.installed() else training_support.MISSING


def not_differentiable(error: EngineError) -> Refusal:
    """Say that a network has no gradients."""
    return Refusal(
        code="unsupported",
        reason=f"Channels cannot be ranked by gradients: {error.message}",
        node=error.node,
        hint=f"{_WITHOUT}.",
    )


def effects(
    model: ir.Model, groups: Mapping[Key, Group], criterion: "Criterion", context: Context
) -> dict[Key, dict[int, float]]:
    """Give by group and atom how much the divergence from the original changes without the channel."""
    from engine.train import gradients  # noqa: PLC0415  # it loads PyTorch

    settings = gradients.GradientSettings(criterion)
    found = gradients.channel_effects(model, context.original, list(groups.values()), settings, context)
    return dict(zip(groups, found, strict=True))
