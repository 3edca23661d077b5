"""The coordinator of a search: what to do next, given what is known. A pure function, so that a search is replayed, never stored.

Cheap first: measure the network's parts; make and refit what they promise; distil a few for a short while; distil the best for what
time is left; finish with the least cost that holds every limit, or with what comes nearest.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.errors import ModelUnsupportedError
from engine.search import study
from engine.search.clock import Clock
from engine.search.distilling import Distilling
from engine.search.ledger import Ledger
from engine.search.library import VariantLibrary
from engine.search.looking import SOLVER_ROUNDS, Looking, new_ones
from engine.search.prediction import Prediction
from engine.search.task import Task, key_of, steady
from engine.search.turn import Finish, MeasureVariants, TryProposals, Turn
from engine.search.values import Level, Proposal, Stage, Told
from engine.spec import Search

# What proposals of a round were, by what they follow from, so that a search in one process works each out once.
Memo = dict[str, tuple[Proposal, ...]]

# Parts of the library that every worker is given at a time, candidates of the study, and the first candidates of all.
_PARTS_AT_A_TIME, _STUDIED_AT_A_TIME, _FIRST_AT_A_TIME = 4, 4, 2
# Precisions that pay for a goal, as a rule. Others are measured where time is left.
_SMALL = ("float32", "static", "weights4", "weights8")
_FAST = {"cpu": ("float32", "static", "dynamic")}
_FAST_ON_DEVICES = ("float32", "float16", "static")
_PARTS_LAST = 4
# Trials that are kept for training and what follows it, as a share of all and at most.
_KEPT_SHARE, _KEPT_MOST = 3, 12
# A full distillation shorter than this shows no more than a short one. Where so much is left, two candidates share it.
_FULL_LEAST_S, _FULL_SHARED_S, _FULL_FIRST_SHARE = 4.0, 100.0, 0.55
_FULL_STEP_S = 5.0
# Candidates to look at before any is trained, whatever the time that looking may take.
_LEAST_LOOKED = 4
# The rank of what breaks a limit.
_FAILS = 2
# Without training: the candidates within so much of what is allowed, so many of them, are quantized again with more care.
_NEARLY, _CAREFUL = 1.4, 3


def next_turn(
    task: Task,
    *,
    parts: Sequence[str],
    pieces: Mapping[str, Mapping[str, Any]],
    told: Sequence[Told],
    clock: Clock,
    memo: Memo | None = None,
) -> Turn:
    """Say what a search does next; the same arguments give the same turn.

    Args:
        task: what the search is about.
        parts: names of the library's parts.
        pieces: those that were measured; of another job's library maybe all.
        told: every trial that has ended.
        clock: how much time there is.
        memo: kept by a caller who asks again.

    Raises:
        ModelUnsupportedError: the first part, the network's structure, could not be measured.
    """
    missing = [part for part in in_order(parts, task.spec) if part not in pieces]
    needed = [part for part in parts[:1] if part in missing]
    if needed or (missing and not told and clock.measures_variants):
        return MeasureVariants(parts=tuple(missing[: _PARTS_AT_A_TIME * max(1, clock.workers)]))
    # A part that could not be measured is there and empty.
    measured = {name: piece for name, piece in pieces.items() if piece}
    if parts[0] not in measured:
        if clock.left_s <= 0:
            # Then it is the time that was short, and the original is an answer.
            return Finish(trial=None, because="The time was used up before it was read what of the network can change.")
        raise ModelUnsupportedError(
            "What of the network can change could not be read in the time that there was, so that it cannot be searched.",
            hint="Give the search more time, or give a recipe instead: its passes say what of it they can do.",
        )
    cascade = _Cascade(task, VariantLibrary.of(measured), tuple(told), clock, {} if memo is None else memo)
    found = cascade.proposals()
    if isinstance(found, str):
        return Finish(trial=cascade.chosen(), because=found)
    return TryProposals(proposals=tuple(found), drop=cascade.unneeded(found))


def in_order(parts: Sequence[str], spec: Search) -> list[str]:
    """Give the parts of a library with those first that the goal's best precisions need: time may not be left for all."""
    first = _SMALL if spec.goal.minimise in {"size", "memory"} else _FAST.get(spec.target.provider, _FAST_ON_DEVICES)

    def rank(part: str) -> int:
        kind, _, rest = part.partition(":")
        precision, _, repeated = rest.partition(":")
        if kind in {"times", "precision"}:
            if precision not in first or repeated not in {"", "0"}:
                return _PARTS_LAST
            # What a precision loses is known in a second, and nothing can be compared without it.
            return 1 if kind == "precision" or precision == "float32" else 2
        return {"structure": 0, "ranks": _PARTS_LAST}.get(kind, 3)

    return sorted(parts, key=rank)


class _Cascade:
    """One turn after the library: rounds in their order, each made from what was told of those before it."""

    def __init__(self, task: Task, library: VariantLibrary, told: tuple[Told, ...], clock: Clock, memo: Memo) -> None:
        self._task, self._library, self._told, self._clock, self._memo = task, library, told, clock, memo
        self._most = task.spec.allowed[1]
        self._trains = clock.trains
        self._ledger = Ledger.of(task.spec.goal, task.original, told)
        self._last = max((each.proposal.round for each in told), default=0)

    def proposals(self) -> list[Proposal] | str:
        """Give what is tried next, or why the search ends."""
        if len(self._told) >= self._most:
            return f"All {self._most} trials were made."
        # Where measuring the parts took all of it, one candidate is made all the same: there has to be a result.
        if self._clock.left_s <= 0 and self._told:
            return "The time was used up."
        found = self._looking() or self._trained()
        if found:
            return found
        if self._clock.left_s < 2 * self._clock.around_s(self._told, "refit"):
            return "The time was used up."
        return "Nothing was left to try that promised to be better."

    def chosen(self) -> int | None:
        """Name the trial to finish with; None where the original is at least as good."""
        best = self._ledger.best()
        if best is None:
            return None
        original, price = self._ledger.original_judged(), self._ledger.original_cost()
        if original.rank < best.found.rank and best.found.rank == _FAILS:
            return None
        if original.rank == best.found.rank and price is not None:
            fails = original.rank == _FAILS
            if (original.missing, price) <= (best.found.missing, best.cost) if fails else price <= best.cost:
                return None
        return best.number

    def unneeded(self, proposals: Sequence[Proposal]) -> tuple[int, ...]:
        """Name trials whose networks nothing will go on from, and that will not be the result."""
        best = self._ledger.best()
        kept = {each.inherits for each in proposals} | {best.number if best is not None else None}
        kept |= {each.number for each in self._ledger.judged if each.point.precision == "float32"}
        return tuple(each.number for each in self._told if each.number not in kept)

    # Looking

    def _looking(self) -> list[Proposal]:
        """Give open candidates of the rounds that refit only."""
        if any(each.proposal.stage in {"short", "full", "stored"} for each in self._told):
            return []
        for number in range(self._most + 1):
            if number < self._last_looked():
                continue
            planned = self._planned(number)
            if not planned and number > 0:
                return []
            open_ones = self._open(planned, number)
            if open_ones:
                return self._affordable(open_ones, self._looking_s(), kept=self._kept_trials())
        return []

    def _looking_s(self) -> float:
        """Give the time that is left for looking: of a search that has seen next to nothing, all that there is."""
        looked = sum(each.proposal.stage in {"round", "study"} for each in self._told)
        enough = looked >= _LEAST_LOOKED or not self._trains
        return self._clock.looking_s if enough else max(self._clock.looking_s, self._clock.left_s)

    def _last_looked(self) -> int:
        return max((each.proposal.round for each in self._told), default=0)

    def _planned(self, number: int) -> tuple[Proposal, ...]:
        strategy = self._task.spec.strategy
        before = [each for each in self._told if each.proposal.round < number]
        name = f"{number}|{','.join(str(each.number) for each in before)}"
        if name not in self._memo:
            looking = self._looking_at(before)
            if number == 0:
                found = [*looking.singles(), *(looking.opening() if strategy == "auto" else ())]
            elif strategy == "auto" and number <= SOLVER_ROUNDS:
                singles = looking.more_singles(number) if number == 1 else ()
                found = [*singles, *looking.around(number, trains=self._trains)]
            else:
                found = self._studied(number, before)
            planned = new_ones(found, [each.proposal.point for each in before])
            if not planned and strategy == "auto" and 0 < number <= SOLVER_ROUNDS:
                # The solver has nothing that is new: the study may.
                planned = new_ones(self._studied(number, before), [each.proposal.point for each in before])
            self._memo[name] = tuple(planned)
        return self._memo[name]

    def _studied(self, number: int, before: Sequence[Told]) -> list[Proposal]:
        spec = self._task.spec
        proposed = study.propose(
            self._task.architecture,
            Prediction.of(self._task.architecture, self._library, steady(before)),
            steady(before),
            strategy="tpe" if spec.strategy == "auto" else spec.strategy,
            seed=spec.seed,
            count=_STUDIED_AT_A_TIME * max(1, self._clock.workers),
            goal=spec.goal,
            limits=self._looking_at(before).limits(trains=self._trains),
            network=self._task.network() if spec.strategy == "gradient" and self._task.network is not None else None,
        )
        return [each.model_copy(update={"stage": "study", "round": number}) for each in proposed]

    def _looking_at(self, told: Sequence[Told]) -> Looking:
        prediction = Prediction.of(self._task.architecture, self._library, steady(told))
        return Looking(
            self._task, self._library, prediction, Ledger.of(self._task.spec.goal, self._task.original, told)
        )

    def _kept_trials(self) -> int:
        return min(_KEPT_MOST, self._most // _KEPT_SHARE) if self._trains else 0

    # Training

    def _trained(self) -> list[Proposal]:
        """Give open candidates of the rounds that train; where nothing can be trained, of those that are stored with more care."""
        looked = [each for each in self._told if each.proposal.stage in {"single", "round", "study"}]
        first = max((each.proposal.round for each in looked), default=0) + 1
        if not self._trains:
            return self._careful(looked, first)
        shorts = (
            self._short(looked, first, more=False)
            or self._short(self._before(first + 1), first + 1, more=True)
            or self._stored(self._before(first + 2), first + 2, stage="short", count=1)
        )
        if shorts and not self._began(first + 3):
            return shorts
        number = first + 3
        while True:
            found = self._full(self._before(number), number) or self._stored(
                self._before(number + 1), number + 1, stage="full", count=2
            )
            if found or not self._began(number):
                return found
            number += 2

    def _short(self, before: Sequence[Told], number: int, *, more: bool) -> list[Proposal]:
        if self._began(number + 1):
            return []
        count, train_s = max(2, self._clock.workers), self._clock.short_train_s
        distilling = self._distilling(before)
        propose = distilling.more_shorts if more else distilling.shorts
        planned = self._remembered(f"short{more}", before, lambda: propose(count, train_s, number))
        each_s = train_s + self._clock.around_training_s(self._told, "short")
        return self._affordable(self._open(planned, number), self._clock.short_s, each_s=each_s)

    def _stored(self, before: Sequence[Told], number: int, *, stage: Stage, count: int) -> list[Proposal]:
        if self._began(number + 1):
            return []
        distilling, ledger = self._distilling(before), Ledger.of(self._task.spec.goal, self._task.original, before)
        done = {each.told.proposal.inherits for each in ledger.of_stage("stored")}
        parents = [each for each in ledger.of_stage(stage) if each.number not in done]
        if stage == "short":
            parents = distilling.promising(parents)
        level: Level = "full" if stage == "full" else "refit"
        planned = self._remembered(f"stored{stage}", before, lambda: distilling.stored(parents, level, number, count))
        # What a trial took that trained says nothing of one that only stores.
        each_s = self._clock.careful_s(self._told) if level == "full" else None
        return self._affordable(self._open(planned, number), self._clock.left_s, each_s=each_s)

    def _full(self, before: Sequence[Told], number: int) -> list[Proposal]:
        if self._began(number + 1):
            return []
        open_ones = [] if self._began(number) else [number]
        if not open_ones and self._clock.workers == 1:
            return []
        train_s, fresh_s = self._full_s("full"), self._full_s("short")
        if train_s < _FULL_LEAST_S:
            return []
        # Of what nothing was trained yet, less than a short distillation says nothing.
        fresh_s = fresh_s if fresh_s >= self._clock.short_train_s else 0.0
        planned = self._distilling(before).full(train_s, number, max(1, self._clock.workers), fresh_s=fresh_s)
        return self._open(planned, number)[: self._most - len(self._told)]

    def _full_s(self, begins: Stage) -> float:
        """Give how long a full distillation may train that begins as trials of a stage do, in whole steps where it is long."""
        around = self._clock.around_training_s(self._told, begins)
        careful = self._clock.careful_s(self._told)
        left = self._clock.left_s - around - 2 * careful
        if left > _FULL_SHARED_S and not any(each.proposal.stage == "full" for each in self._told):
            left *= _FULL_FIRST_SHARE
        return left if left < 4 * _FULL_STEP_S else left // _FULL_STEP_S * _FULL_STEP_S

    def _careful(self, looked: Sequence[Told], number: int) -> list[Proposal]:
        """Give the cheapest of those near to holding once more, quantized with the care that a result gets."""
        if self._began(number + 1):
            return []
        ledger = Ledger.of(self._task.spec.goal, self._task.original, looked)
        near = [each for each in ledger.of_stage("round", "study") if each.found.strain < _NEARLY]
        near = sorted(near, key=lambda each: each.cost)[:_CAREFUL]
        planned = [
            each.told.proposal.model_copy(
                update={
                    "level": "full",
                    "stage": "stored",
                    "round": number,
                    "because": f"Trial {each.number} once more, quantized with more care.",
                }
            )
            for each in near
            if each.point.precision in {"static", "weights8", "weights4"}
        ]
        return self._affordable(self._open(planned, number), self._clock.left_s)

    # What was done

    def _before(self, number: int) -> list[Told]:
        return [each for each in self._told if each.proposal.round < number]

    def _began(self, number: int) -> bool:
        return any(each.proposal.round >= number for each in self._told)

    def _distilling(self, before: Sequence[Told]) -> Distilling:
        return Distilling(self._looking_at(before), Ledger.of(self._task.spec.goal, self._task.original, before))

    def _remembered(
        self, name: str, before: Sequence[Told], propose: Callable[[], Sequence[Proposal]]
    ) -> tuple[Proposal, ...]:
        key = f"{name}|{','.join(str(each.number) for each in before)}"
        if key not in self._memo:
            self._memo[key] = tuple(propose())
        return self._memo[key]

    def _open(self, planned: Sequence[Proposal], number: int) -> list[Proposal]:
        tried = {_asked(each.proposal) for each in self._told if each.proposal.round == number}
        return [each for each in planned if _asked(each) not in tried]

    def _affordable(
        self, open_ones: Sequence[Proposal], seconds: float, *, kept: int = 0, each_s: float | None = None
    ) -> list[Proposal]:
        """Give as many as time and trials are left for. The first trials of all are made in any case: there has to be a result."""
        each_s = self._clock.around_s(self._told, open_ones[0].level) if each_s is None and open_ones else each_s or 0.0
        fit = self._clock.fit(min(seconds, self._clock.left_s), each_s)
        if not self._told:
            # How long one takes is not known yet.
            fit = min(max(fit, 1), _FIRST_AT_A_TIME * max(1, self._clock.workers))
        return list(open_ones)[: max(0, min(fit, self._most - kept - len(self._told)))]


def _asked(proposal: Proposal) -> str:
    return f"{key_of(proposal.point)}|{proposal.inherits}"
