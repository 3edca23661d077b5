"""The search for better session options on a target: each try is measured in turn with the target's own options."""

from collections.abc import Sequence

from engine.measure.latency import judge_turns, take_turns
from engine.report.values import LatencyComparison, OptionTrial, SessionOptions, Tuning
from engine.runtime.host_lock import HostLock
from engine.runtime.processor import cpu_profile
from engine.runtime.providers import PROVIDERS
from engine.runtime.sessions import Feed, ModelSource, default_options, session
from engine.target import Target

_MIN_RUNS, _MAX_RUNS = 20, 1000
# Options that gain less are not worth setting.
_WORTH_IT = 0.98
# Threads, then how they are used, then what becomes of the graph, then the winner once more.
_ROUNDS = 4


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

    One option after the other, from the best so far: number of threads; execution mode and spinning; graph optimisation. What
    was best is then measured again, because the best of several is partly luck. Only options that reach the provider are tried.

    Args:
        model: the network.
        feeds: what it is run on, in turn.
        target: whose provider, and whose own options, the search begins with.
        max_seconds: of measuring, all rounds together.
        max_threads: most that are tried; None: as many as there are cores.
        lock: held alone while it measures.
    """
    cores = max_threads or cpu_profile().cores
    search = _Search(model, feeds, target, lock or HostLock(None), seconds=max_seconds / _ROUNDS, cores=cores)
    tunable = PROVIDERS[target.provider].tunable
    for tries in (_threads, _scheduling, _optimisation):
        search.round([each for each in tries(search.best, search.cores) if _differ(each, search.best) <= tunable])
    return search.result()


class _Search:
    def __init__(
        self, model: ModelSource, feeds: Sequence[Feed], target: Target, lock: HostLock, *, seconds: float, cores: int
    ) -> None:
        self._model, self._feeds, self._target, self._lock = model, feeds, target, lock
        self._seconds = seconds
        self.cores = cores
        self.default = default_options(target)
        self.best, self._best_ratio = self.default, 1.0
        self._trials: list[OptionTrial] = []

    def round(self, tries: Sequence[SessionOptions]) -> None:
        """Measure some options, and go on from the best where that is one of them."""
        compared = self._race(tries)
        self._trials += [_trial(options, found) for options, found in zip(tries, compared, strict=True)]
        for options, found in zip(tries, compared, strict=True):
            if _is_faster(found) and found.ratios["p50"].value < self._best_ratio:
                self.best, self._best_ratio = options, found.ratios["p50"].value

    def result(self) -> Tuning:
        """Measure the best again, beside the default alone."""
        chosen, gain, reason = None, None, "No other options were faster than the target's own beyond noise."
        if self.best != self.default:
            again = self._race([self.best])[0]
            ratio = again.ratios["p50"]
            if not again.stable:
                reason = f"The fastest options could not be confirmed: {again.unstable_because}."
            elif _is_faster(again):
                chosen, gain = self.best, ratio
                reason = f"A run takes {ratio.value:.2f} of the time with {_words(self.best, self.default)}."
            else:
                reason = "The fastest options were not faster when they were measured again."
        return Tuning(default=self.default, trials=tuple(self._trials), chosen=chosen, gain=gain, reason=reason)

    def _race(self, tries: Sequence[SessionOptions]) -> list[LatencyComparison]:
        if not tries:
            return []
        with self._lock.working():
            # The default twice: the first beside the second is the noise.
            candidates = {"default": self.default, "default again": self.default}
            candidates |= {str(number): options for number, options in enumerate(tries)}
            sessions = {
                name: session(self._model, self._target, options=options) for name, options in candidates.items()
            }
        with self._lock.measuring():
            turns = take_turns(
                sessions,
                self._feeds,
                seconds=self._seconds,
                min_runs=_MIN_RUNS,
                max_runs=_MAX_RUNS,
                precision=0.02,
            )
        return [
            judge_turns(turns, str(number), self._target, {}, same_threads=options.threads == self.default.threads)
            for number, options in enumerate(tries)
        ]


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


def _optimisation(best: SessionOptions, _cores: int) -> list[SessionOptions]:
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
    """Say whether options gain what is worth telling, by more than the ratio's interval and the default's own noise."""
    ratio = found.ratios["p50"]
    beyond = ratio.interval.high < min(1.0, found.noise_floor.low)
    return found.stable and beyond and ratio.value < _WORTH_IT


def _words(options: SessionOptions, default: SessionOptions) -> str:
    told = {
        "threads": f"{options.threads} intra-op threads",
        "execution_mode": f"{options.execution_mode} execution on {options.inter_op_threads} threads",
        "graph_optimization": f"graph optimisation `{options.graph_optimization}`",
        "spinning": "spinning" if options.spinning else "no spinning",
    }
    return ", ".join(text for name, text in told.items() if name in _differ(options, default))
