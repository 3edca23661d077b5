"""How much a search over quantized networks may run them: less where a run is slow, and what that means in words."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Literal

import onnx_ir as ir

from engine.contract import Context, Samples
from engine.graph import io
from engine.measure.runs import seconds_per_sample
from engine.runtime import sessions

# Of comparing and refining candidates, all of a search together. Statistics, noise by layer, building and races come on top:
# on a detector of 62 layers they took twice as long again.
_SECONDS = 60.0
# Of refining the one network of a pass, beside what scores take.
_REFINEMENT_SECONDS = 30.0
# How much of a core each one more is worth, as a power.
_SHARED = 0.8
# Of one refinement: roundings that are fitted, each on the inputs of all layers.
_ROUNDINGS = 2
# Of the time that the job has left.
_SHARE_OF_REST = 0.4
# Of one refinement: scores, each of a run over its samples, and fits, in samples; equalisation also calibrates so many times.
_SCORES, _FITS, _CALIBRATIONS = 12, 200, 3


@dataclass(frozen=True)
class Effort:
    """Samples that candidates are compared on, which networks with fixed ranges are refined, and on how many samples."""

    fidelity_samples: int
    refined: Literal["all", "first", "none"]
    refine_samples: int
    # Networks that are made to find the fewest layers that must stay in float.
    bisections: int
    seconds_per_sample: float = 0.0

    def cost(self, layers: int, calibrate: int) -> float:
        """Give the seconds of running that a search takes with it, of a network with so many layers."""
        networks = 8 + min(self.bisections, ceil(log2(max(layers, 2))))
        refinement = _SCORES * self.refine_samples + _FITS + 8 * layers
        refinement += _CALIBRATIONS * calibrate if self.refined == "all" else 0
        refined = {"all": networks, "first": 1, "none": 0}[self.refined]
        return self.seconds_per_sample * ((networks + 6) * self.fidelity_samples + refined * refinement)

    @property
    def said(self) -> str | None:
        """Say what was saved for want of time; None where nothing was."""
        if self.refined == "all":
            return None
        which = (
            "only the first network with fixed ranges was refined, without equalisation"
            if self.refined == "first"
            else "none was refined"
        )
        return f"A sample takes about {_each(self.seconds_per_sample)}, so candidates were compared on {self.fidelity_samples} samples and {which}."


_LEVELS = (
    Effort(fidelity_samples=256, refined="all", refine_samples=128, bisections=16),
    Effort(fidelity_samples=96, refined="first", refine_samples=48, bisections=8),
    Effort(fidelity_samples=32, refined="first", refine_samples=16, bisections=5),
    Effort(fidelity_samples=16, refined="none", refine_samples=0, bisections=3),
)


def choose(model: ir.Model, layers: int, context: Context) -> Effort:
    """Give the most that the time allows, by the time that the network takes for a sample; the least where none fits.

    That time is rounded to a power of two, so that a job that is run again chooses as before.
    """
    rounded = _rounded_seconds(model, context)
    allowed = min(_SECONDS, _SHARE_OF_REST * _rest(context))
    calibrate = len(context.calibration) if context.calibration is not None else 0
    levels: Sequence[Effort] = [replace(each, seconds_per_sample=rounded) for each in _LEVELS]
    return next((each for each in levels if each.cost(layers, calibrate) <= allowed), levels[-1])


@dataclass(frozen=True)
class RefinementEffort:
    """What the refinement of one network with fixed ranges may run. `fit_samples`: those that roundings are fitted on."""

    equalise: bool
    fit_samples: int
    seconds_per_sample: float = 0.0

    def cost(self, stages: int, calibrate: int) -> float:
        """Give the seconds of running beside those of scores, which are bounded by themselves.

        `stages`: how often the network is run to look at the inputs of all layers; on average half of it is.
        """
        equalisation = _CALIBRATIONS * calibrate if self.equalise else 0
        return self.seconds_per_sample * (equalisation + _ROUNDINGS * stages * min(self.fit_samples, calibrate) / 2)

    @property
    def said(self) -> str | None:
        """Say what was saved for want of time; None where nothing was."""
        fewer = self.fit_samples < _REFINEMENTS[0].fit_samples
        left = [f"weights were rounded by {self.fit_samples} samples"] if fewer else []
        left += [] if self.equalise else ["equalisation was left out"]
        return f"A sample takes about {_each(self.seconds_per_sample)}, so {' and '.join(left)}." if left else None


_REFINEMENTS = (
    RefinementEffort(equalise=True, fit_samples=96),
    RefinementEffort(equalise=True, fit_samples=16),
    RefinementEffort(equalise=False, fit_samples=16),
    RefinementEffort(equalise=False, fit_samples=4),
)


def choose_refinement(model: ir.Model, stages: int, context: Context, *, equalise: bool) -> RefinementEffort:
    """Give the most that the time allows, in the way of `choose`."""
    seconds = _rounded_seconds(model, context)
    calibrate = len(context.calibration) if context.calibration is not None else 0
    levels = [replace(each, seconds_per_sample=seconds, equalise=each.equalise and equalise) for each in _REFINEMENTS]
    allowed = min(_REFINEMENT_SECONDS, _SHARE_OF_REST * _rest(context))
    return next((each for each in levels if each.cost(stages, calibrate) <= allowed), levels[-1])


def _rounded_seconds(model: ir.Model, context: Context) -> float:
    """Give the time that a sample takes on all cores, rounded to a power of two."""
    measured = _seconds_per_sample(model, context.calibration or context.select, context)
    shared = max(1.0, (context.untimed.threads / context.target.threads) ** _SHARED)
    return float(2.0 ** round(log2(max(measured / shared, 1e-6))))


def _rest(context: Context) -> float:
    return float("inf") if context.deadline is None else context.deadline - time.monotonic()


def _each(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _seconds_per_sample(model: ir.Model, samples: Samples | None, context: Context) -> float:
    if samples is None or not len(samples):
        return 0.0
    # The clock of a single thread stands still while others run, so that a busy machine does not look like a slow network.
    alone = context.target.provider == "cpu" and context.target.threads == 1
    clock = time.thread_time if alone else time.perf_counter
    with context.working():
        return seconds_per_sample(sessions.session(io.to_bytes(model), context.target), samples, clock)
