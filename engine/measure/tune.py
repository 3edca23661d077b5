"""The search for better session options on a target: each try is measured in turn with the target's own options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from engine.errors import EngineError, VerificationFailedError
from engine.graph.agreement import agreement
from engine.graph.operators import has_convolutions
from engine.measure.latency import judge_turns, take_turns
from engine.report.counted_time import counted, far_faster
from engine.report.run_facts import SessionOptions
from engine.report.usage import usage
from engine.report.values import ImpossibleOptions, LatencyComparison, OptionTrial, Tuning
from engine.runtime.device_binding import DeviceRun
from engine.runtime.host_lock import HostLock
from engine.runtime.native_output import held_back
from engine.runtime.processor import cpu_profile
from engine.runtime.providers import PROVIDERS, Provider
from engine.runtime.sessions import Feed, ModelSource, Session, default_options, session
from engine.target import Target

_MIN_RUNS, _MAX_RUNS = 20, 1000
# Options that gain less are not worth setting.
_WORTH_IT = 0.98
_SLOWER = 1.05
# Of an output's largest value: more than kernels of one precision round apart, and less than a wrong result is off.
_ROUNDING = 2e-2


def find_options(
    model: ModelSource,
    feeds: Sequence[Feed],
    target: Target,
    *,
    max_seconds: float,
    max_threads: int | None = None,
    lock: HostLock | None = None,
) -> Tuning:
    """Look for session options that run a network faster than the target's own.

    One option after the other, from the best so far: number of threads; execution mode and spinning; graph optimisation; inputs
    that stay on the device; open axes fixed at the sizes of the feeds; the provider's own options, twice, since two may add up; runs that are recorded and played back.
    What was best is then measured again, because the best of several is partly luck. Only options that reach the provider are
    tried, and what does not run with them, or gives other numbers, is named.

    Args:
        model: the network.
        feeds: what it is run on, in turn.
        target: whose provider, and whose own options, the search begins with.
        max_seconds: of measuring, all rounds together.
        max_threads: most that are tried; None: as many as there are cores.
        lock: held alone while it measures.
    """
    cores = max_threads or cpu_profile().cores
    provider = PROVIDERS[target.provider]
    search = _Search(model, feeds, target, lock or HostLock(None))
    if provider.of_convolutions and not has_convolutions(model):
        provider = replace(
            provider,
            candidates=tuple(each for each in provider.candidates if each.keys().isdisjoint(provider.of_convolutions)),
        )
    rounds = [each for each in _rounds(provider, cores, search.open_axes()) if each(search.default)]
    # The winner once more.
    search.seconds = max_seconds / (len(rounds) + 1)
    for tries in rounds:
        search.round(tries(search.best))
    return search.result()


class _Search:
    def __init__(self, model: ModelSource, feeds: Sequence[Feed], target: Target, lock: HostLock) -> None:
        self._model, self._feeds, self._target, self._lock = model, feeds, target, lock
        self.seconds = 0.0
        self.default = default_options(target)
        self.best, self._best_ratio = self.default, 1.0
        self._trials: list[OptionTrial] = []
        self._impossible: list[ImpossibleOptions] = []

    def round(self, tries: Sequence[SessionOptions]) -> None:
        """Measure some options, and go on from the best where that is one of them."""
        known = [trial.options for trial in self._trials] + [each.options for each in self._impossible]
        tries = [each for each in tries if not self._was_slower(each)]
        for options, found in self._race([each for each in tries if each not in known]):
            self._trials.append(_trial(options, found))
            # What adds nothing to the best so far is no part of what is recommended.
            if _is_faster(found) and found.ratios["p50"].value < self._best_ratio * _WORTH_IT:
                self.best, self._best_ratio = options, found.ratios["p50"].value

    def _was_slower(self, options: SessionOptions) -> bool:
        """Tell whether an option of the provider was slower by itself: beside others it is not tried again."""
        slower = [
            trial.options.provider_options.items() for trial in self._trials if trial.ratio.interval.low > _SLOWER
        ]
        added = options.provider_options.items() - self.best.provider_options.items()
        return any(added and added <= each for each in slower)

    def result(self) -> Tuning:
        """Measure the best again, beside the default alone."""
        chosen, gain, reason = None, None, "No other options were faster than the target's own beyond noise."
        if self.best != self.default:
            again = next((found for _, found in self._race([self.best])), None)
            if again is None:
                reason = "The fastest options did not run again."
            elif _is_faster(again):
                time = counted(again)
                chosen, gain = self.best, time.ratio
                reason = (
                    f"A run takes {time.ratio.value:.2f} of the time with {_words(self.best, self.default)}{time.said}."
                )
            elif not again.stable:
                reason = f"The fastest options could not be confirmed: {again.unstable_because}."
            else:
                reason = "The fastest options were not faster when they were measured again."
        return Tuning(
            default=self.default,
            trials=tuple(self._trials),
            impossible=tuple(self._impossible),
            chosen=chosen,
            gain=gain,
            reason=reason,
            usage=usage(self._target, chosen or self.default),
        )

    def _race(self, tries: Sequence[SessionOptions]) -> list[tuple[SessionOptions, LatencyComparison]]:
        if not tries:
            return []
        with self._lock.working():
            sessions = dict(self._defaults)
            opened = [(options, self._open(options, sessions["default"])) for options in tries]
            running = [(options, each) for options, each in opened if each is not None]
            sessions |= {str(number): each for number, (_, each) in enumerate(running)}
        if not running:
            return []
        with self._lock.measuring():
            turns = take_turns(
                sessions,
                self._feeds,
                seconds=self.seconds,
                min_runs=_MIN_RUNS,
                max_runs=_MAX_RUNS,
                precision=0.02,
            )
        same = [options.threads == self.default.threads for options, _ in running]
        return [
            (options, judge_turns(turns, str(number), self._target, {}, same_threads=same[number]))
            for number, (options, _) in enumerate(running)
        ]

    @cached_property
    def _defaults(self) -> dict[str, Session]:
        """Open the default twice: the first beside the second is the noise."""
        names = ("default", "default again")
        return {name: session(self._model, self._target, options=self.default) for name in names}

    def open_axes(self) -> dict[str, int]:
        """Give the sizes of axes that the network leaves open, as far as all feeds have the same."""
        if PROVIDERS[self._target.provider].tunable.isdisjoint({"fixed_axes"}):
            return {}
        found: dict[str, set[int]] = {}
        with self._lock.working():
            inputs = self._defaults["default"].inputs
        for port in inputs:
            for feed in self._feeds:
                for axis, size in zip(port.shape, feed[port.name].shape, strict=False):
                    if isinstance(axis, str):
                        found.setdefault(axis, set()).add(size)
        return {axis: sizes.pop() for axis, sizes in found.items() if len(sizes) == 1}

    def _open(self, options: SessionOptions, default: Session) -> Session | None:
        """Give a session with some options; None where the network does not run with them, or gives other numbers."""
        try:
            # What a provider prints of options that it cannot do is said once, by the error.
            with held_back(on_failure="keep"):
                opened = session(self._model, self._target, options=options)
                self._refuse_other_numbers(opened, options, default)
        except EngineError as error:
            self._impossible.append(ImpossibleOptions(options=options, reason=error.message))
            return None
        return opened

    def _refuse_other_numbers(self, opened: Session, options: SessionOptions, default: Session) -> None:
        """Raise where outputs move by more than rounding; options that leave the provider alone leave them alone too."""
        if options.provider_options == self.default.provider_options:
            return
        moved = agreement(default, _AsTimed(opened), self._feeds[:1])
        if moved.relative > _ROUNDING:
            raise VerificationFailedError(
                f"Output `{moved.worst}` is {moved.relative:.1e} of its largest value off with these options"
            )


@dataclass(frozen=True)
class _AsTimed:
    """Runs a session in the way in which it is timed: what was recorded is played back."""

    session: Session

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Give every output by name."""
        call = self.session.bind(feed)
        if not isinstance(call, DeviceRun):
            return self.session.run(feed)
        call()
        return dict(zip((port.name for port in self.session.outputs), call.outputs(), strict=True))


_Tries = Callable[[SessionOptions], list[SessionOptions]]


def _rounds(provider: Provider, cores: int, open_axes: Mapping[str, int]) -> list[_Tries]:
    """Give what is tried, round by round; each leaves out options that do not reach the provider."""

    def reaching(tries: _Tries) -> _Tries:
        return lambda best: [each for each in tries(best) if _differ(each, best) <= provider.tunable]

    in_order: list[_Tries] = [
        lambda best: _threads(best, cores),
        lambda best: _scheduling(best, cores),
        _optimisation,
        lambda best: _on_device(best, provider),
        lambda best: _fixed(best, open_axes),
        lambda best: _of_the_provider(best, provider),
        lambda best: _of_the_provider(best, provider),
        lambda best: _recorded(best, provider),
    ]
    return [reaching(each) for each in in_order]


def _on_device(best: SessionOptions, provider: Provider) -> list[SessionOptions]:
    if provider.memory is None or best.inputs_on_device:
        return []
    return [best.model_copy(update={"inputs_on_device": True})]


def _fixed(best: SessionOptions, open_axes: Mapping[str, int]) -> list[SessionOptions]:
    """Fix what every run has the same: sizes are then computed once, and what computes them is gone from the graph."""
    return [best.model_copy(update={"fixed_axes": dict(open_axes)})] if open_axes else []


def _of_the_provider(best: SessionOptions, provider: Provider) -> list[SessionOptions]:
    changed = [{**best.provider_options, **candidate} for candidate in provider.candidates]
    return [best.model_copy(update={"provider_options": each}) for each in changed if each != best.provider_options]


def _recorded(best: SessionOptions, provider: Provider) -> list[SessionOptions]:
    if provider.captures is None:
        return []
    changed = {**best.provider_options, provider.captures: "1"}
    if changed == best.provider_options:
        return []
    return [best.model_copy(update={"provider_options": changed, "inputs_on_device": True})]


def _threads(best: SessionOptions, cores: int) -> list[SessionOptions]:
    counts = sorted({*(1 << power for power in range(cores.bit_length())), cores} - {best.threads})
    return [best.model_copy(update={"threads": count}) for count in counts if count <= cores]


def _scheduling(best: SessionOptions, cores: int) -> list[SessionOptions]:
    tries = []
    if cores > 1:
        tries.append(best.model_copy(update={"execution_mode": "parallel", "inter_op_threads": min(cores, 4)}))
    if best.threads > 1:
        tries.append(best.model_copy(update={"spinning": False}))
    return tries


def _optimisation(best: SessionOptions) -> list[SessionOptions]:
    levels = ("disabled", "basic", "extended", "all")
    return [
        best.model_copy(update={"graph_optimization": level}) for level in levels if level != best.graph_optimization
    ]


def _differ(one: SessionOptions, other: SessionOptions) -> set[str]:
    names = {name for name in SessionOptions.model_fields if getattr(one, name) != getattr(other, name)}
    # These threads are a part of the mode.
    return names - {"inter_op_threads"}


def _trial(options: SessionOptions, found: LatencyComparison) -> OptionTrial:
    return OptionTrial(
        options=options,
        p50_ms=found.compressed.p50_ms,
        ratio=found.ratios["p50"],
        stable=found.stable,
    )


def _is_faster(found: LatencyComparison) -> bool:
    """Say whether options gain what is worth telling, by more than the ratio's interval and the default's own noise.

    On a busy machine by far more: what takes half of the time takes less of it whatever others do meanwhile.
    """
    beyond = counted(found).faster if found.stable else far_faster(found)
    return beyond and found.ratios["p50"].value < _WORTH_IT


def _words(options: SessionOptions, default: SessionOptions) -> str:
    told = {
        "threads": f"{options.threads} intra-op threads",
        "execution_mode": f"{options.execution_mode} execution on {options.inter_op_threads} threads",
        "graph_optimization": f"graph optimisation `{options.graph_optimization}`",
        "spinning": "spinning" if options.spinning else "no spinning",
        "inputs_on_device": "inputs and outputs on the device" if options.inputs_on_device else "inputs on the host",
        "fixed_axes": "fixed " + ", ".join(f"`{axis}={size}`" for axis, size in options.fixed_axes.items()),
        "provider_options": ", ".join(
            f"`{name}={value}`"
            for name, value in options.provider_options.items()
            if default.provider_options.get(name) != value
        ),
    }
    return ", ".join(text for name, text in told.items() if name in _differ(options, default))
