"""How many samples a gate on quality takes before it can pass at all, told from its limit alone: no number is measured yet.

A gate passes where even the unfavourable bound is inside its limit. The bound is never nearer to the value than what the samples
could hide: where not one of n changed, a share of z^2 / (n + z^2) may change all the same (`engine/measure/intervals.py`).
"""

from collections.abc import Sequence
from math import ceil
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict, Field

from engine.gate import Gate

# Two-sided, as intervals in reports are; gates rescale them to their own confidence.
_REPORTED = 0.95
# Shares per sample that are 0 or 1 for a network beside its original.
_SHARES = frozenset({"top1_agreement", "mask_iou", "box_f1", "token_agreement"})
# A share of decisions that compression usually changes, for better or worse.
USUALLY_CHANGED = 0.02


class GateSamples(BaseModel):
    """How many samples a gate on quality takes, beside how many judge."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    gate: str = Field(description="The gate's metric, with its output where it names one.")
    rule: str
    value: float
    needed: int = Field(description="The fewest on which it can pass, where the result does as well on each.")
    usually: int | None = Field(
        None, description=f"About how many it takes where {USUALLY_CHANGED:.0%} of the decisions change; top1 and top5."
    )
    judging: int = Field(description="How many samples judge.")


def gate_samples(gates: Sequence[Gate], judging: int) -> list[GateSamples]:
    """Give that for each gate of which the limit alone tells it."""
    return [
        GateSamples(
            gate=gate.label,
            rule=gate.rule,
            value=gate.value,
            needed=needed,
            usually=samples_where_some_change(gate),
            judging=judging,
        )
        for gate in gates
        if (needed := samples_needed(gate)) is not None
    ]


def samples_needed(gate: Gate) -> int | None:
    """Give the fewest samples on which the gate can pass, where the network does as well as its original on each of them.

    None: the width of its bound depends on the data alone, or no number of samples is enough (a loss of nothing is allowed).
    """
    own, reported = NormalDist().inv_cdf(gate.confidence), NormalDist().inv_cdf((1 + _REPORTED) / 2)
    if gate.rule == "max_drop":
        if gate.value <= 0:
            return None
        if gate.metric in {"top1", "top5"}:
            return _count(own * own * (1 - gate.value) / gate.value)
        if gate.metric in {"iou", "edit_distance"}:
            return _count(reported * own / gate.value - reported * reported)
        return _count(own / gate.value) if gate.metric == "f1" else None
    if gate.rule == "min" and gate.metric in {*_SHARES, "top1", "top5"} and gate.value < 1:
        return _count(reported * own / (1 - gate.value) - reported * reported)
    return None


def samples_where_some_change(gate: Gate, changed: float = USUALLY_CHANGED) -> int | None:
    """Give about how many samples the gate takes where this share of decisions changes, as many for the better as the worse."""
    least = samples_needed(gate)
    if least is None or gate.metric not in {"top1", "top5"} or gate.rule != "max_drop":
        return None
    own = NormalDist().inv_cdf(gate.confidence)
    return max(least, _count(own * own * changed / gate.value**2))


def too_few(gate: Gate, judging: int) -> str | None:
    """Say that a gate cannot pass on so many samples, and how many it takes; None where it can."""
    named = f"The gate on {gate.label} ({gate.rule} {gate.value:.6g})"
    if gate.rule == "max_drop" and gate.value <= 0 and gate.metric in {"top1", "top5", "f1", "iou", "edit_distance"}:
        return (
            f"{named} allows no loss: samples never show that there is none, so it can only pass where the result is plainly"
            " better."
        )
    least = samples_needed(gate)
    if least is None or judging >= least:
        return None
    usually = samples_where_some_change(gate)
    more = f", and about {usually} where {USUALLY_CHANGED:.0%} of the decisions change" if usually else ""
    return (
        f"{named} cannot pass on the {judging} samples that judge: even where none of them gets worse, it takes {least}"
        f"{more}. On fewer it can fail, or stays inconclusive."
    )


def _count(samples: float) -> int:
    # At least two samples are judged on; the epsilon keeps what is whole from being rounded up.
    return max(2, ceil(samples - 1e-9))
