"""How MatMulNBits computes: what rounding its activations to 8 bits costs in fidelity and saves in time, and which to take."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from engine.contract import Context
from engine.graph import io
from engine.measure.acceptance import losses, noise_share
from engine.report.quantization_details import AccuracyChoice, AccuracyLevel
from engine.report.values import Quality

Level = Literal["int8", "float32"]
# What the attribute `accuracy_level` says: 1 computes as without the attribute (0), in float32.
ONNX_LEVELS: dict[Level, int] = {"float32": 1, "int8": 4}
# A decibel of fidelity is worth this share of the time of a run.
_TIME_OF_A_DECIBEL = 0.1
# Longer is not worth the choice: the level `int8` then stays.
_LONGEST_S = 120.0


@dataclass(frozen=True)
class Measured:
    """A network at one level: its noise as a share of the outputs' energy, its time beside level `int8`, and what forbids it."""

    level: Level
    noise: float
    time: float
    forbidden: bool


def choose_level(model: ir.Model, context: Context) -> AccuracyChoice | None:
    """Run a network at both levels on the samples to choose by, set the better one in place, and say why.

    None where it cannot be told: no MatMulNBits, no data, outputs that nothing compares, or runs that take minutes.
    """
    if not _products(model) or not context.has_data or context.select is None or not len(context.select):
        return None
    networks: dict[Level, ir.Model] = {"int8": at_level(model, "int8"), "float32": at_level(model, "float32")}
    quality: dict[Level, Sequence[Quality]] = {}
    started = time.monotonic()
    for level, network in networks.items():
        quality[level] = context.evaluate(network)
        if not quality[level] or time.monotonic() - started > _LONGEST_S:
            return None
    times = context.race(list(networks.values()))
    found = [_measured(level, quality[level], ratio, context) for level, ratio in zip(networks, times, strict=True)]
    chosen, reason = better(*found)
    set_level(model, chosen)
    return AccuracyChoice(
        levels=tuple(
            AccuracyLevel(
                level=each.level,
                accuracy_level=ONNX_LEVELS[each.level],
                noise=float(f"{each.noise:.3g}"),
                relative_time=round(each.time, 3),
                chosen=each.level == chosen,
            )
            for each in found
        ),
        loss_share=round(share_of_loss(*found), 4),
        reason=reason,
    )


def better(int8: Measured, float32: Measured) -> tuple[Level, str]:
    """Say which level to take, and why in words."""
    if int8.forbidden != float32.forbidden:
        return (
            ("float32", "with `int8` the outputs lose more than is allowed")
            if int8.forbidden
            else ("int8", "only it is allowed")
        )
    cost = _decibels(int8, float32)
    saved = 1 - int8.time / float32.time
    beside = f"`int8` costs {cost:.2f} dB of fidelity and {_in_time(saved)}"
    if cost <= 0 and saved >= 0:
        return "int8", f"{beside}: it is no worse in either"
    if saved > cost * _TIME_OF_A_DECIBEL:
        return "int8", beside
    return "float32", f"{beside}; a decibel has to save {_TIME_OF_A_DECIBEL:.0%}"


def share_of_loss(int8: Measured, float32: Measured) -> float:
    """Give the share of the noise at level `int8` that the level itself makes: 0 where it makes none."""
    return max(0.0, 1 - float32.noise / int8.noise) if int8.noise > 0 else 0.0


def at_level(model: ir.Model, level: Level) -> ir.Model:
    """Give a copy whose products of few-bit weights compute at this level."""
    copy = io.copy(model)
    set_level(copy, level)
    return copy


def set_level(model: ir.Model, level: Level) -> None:
    """Let all products of few-bit weights compute at this level, in place."""
    for node in _products(model):
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", ONNX_LEVELS[level])


def _products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]


def _measured(level: Level, quality: Sequence[Quality], ratio: float, context: Context) -> Measured:
    forbidden = next(losses(quality, context.gates), None) is not None
    return Measured(level, noise_share(quality), float(ratio), forbidden)


def _decibels(int8: Measured, float32: Measured) -> float:
    if int8.noise <= 0 or float32.noise <= 0:
        return 0.0 if int8.noise <= float32.noise else math.inf
    return 10 * math.log10(int8.noise / float32.noise)


def _in_time(saved: float) -> str:
    return f"saves {saved:.0%} of the time" if saved >= 0 else f"takes {-saved:.0%} more time"
