"""What a search tells when it is over: what was tried, why it was kept or dropped, what there is to choose from, what limits going on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from engine.goal import Budget
from engine.measure.acceptance import quality_drop
from engine.report.search import (
    Certificate,
    Certificates,
    Counts,
    FrontPoint,
    LimitStanding,
    Miss,
    NearPoint,
    SearchReport,
    StoryLine,
)
from engine.search import front
from engine.search.feasibility import Standing, in_words
from engine.search.front import Shortfall
from engine.search.ledger import Judged, Ledger
from engine.search.recipe import recipe_of
from engine.search.task import Task
from engine.search.values import Told, measured

_NEAREST = 3
_COSTS = {"latency": "time", "size": "size", "memory": "memory", "macs": "multiply-accumulates"}


def tell_story(
    task: Task, told: Sequence[Told], *, chosen: int | None, stopped: str, seconds: float, met: bool
) -> SearchReport:
    """Give the report of a search.

    Args:
        task: what it was about.
        told: every trial that has ended.
        chosen: the trial that made the result; None: the original.
        stopped: why it ended.
        seconds: that it took.
        met: whether the result holds every limit on the samples that judge.
    """
    story = _Story(task, Ledger.of(task.spec.goal, task.original, told), chosen)
    allowed_s, allowed_trials = task.spec.allowed
    states = [each.state for each in told]
    return SearchReport(
        goal=task.spec.goal,
        strategy=task.spec.strategy,
        seed=task.spec.seed,
        budget=Budget(max_seconds=allowed_s, max_trials=allowed_trials),
        seconds=round(seconds, 1),
        trials=Counts(
            succeeded=states.count("succeeded"), failed=states.count("failed"), cancelled=states.count("cancelled")
        ),
        stopped=stopped,
        chosen=chosen,
        met=met,
        story=tuple(story.lines()),
        front=tuple(story.front_points()),
        nearest=() if met else tuple(story.nearest()),
        limits=tuple(story.limits()),
        certificates=story.certificates(),
    )


@dataclass(frozen=True)
class _Story:
    task: Task
    ledger: Ledger
    chosen: int | None

    @cached_property
    def _points(self) -> dict[int, tuple[float, float]]:
        """What is minimised and what is lost, of every trial."""
        found = {}
        for each in self.ledger.judged:
            lost = quality_drop(each.values.quality)
            found[each.number] = (each.cost, 0.0 if lost is None else lost)
        return found

    @cached_property
    def _front(self) -> tuple[int, ...]:
        return front.pareto(self._points)

    @cached_property
    def _shortfalls(self) -> dict[int, tuple[Shortfall, ...]]:
        return {
            each.number: tuple(Shortfall(standing.limit, standing.missing) for standing in each.found.standings)
            for each in self.ledger.judged
        }

    # Trials

    def lines(self) -> Iterator[StoryLine]:
        """Yield every trial in its order."""
        parents: dict[int, list[int]] = {}
        for told in self.ledger.told:
            if told.proposal.inherits is not None:
                parents.setdefault(told.proposal.inherits, []).append(told.number)
        for told in self.ledger.told:
            judged = self.ledger.by_number.get(told.number)
            kept, why = self._fate(told, judged, parents.get(told.number, []))
            yield StoryLine(
                trial=told.number,
                round=told.proposal.round,
                level=told.proposal.level,
                tried=self._tried(told),
                because=told.proposal.because,
                state=told.state,
                predicted=told.proposal.predicted,
                measured=None if judged is None else measured(judged.values),
                holds=None if judged is None else judged.found.rank == 0,
                kept=kept,
                why=why,
                seconds=round(told.seconds, 1),
            )

    def _tried(self, told: Told) -> str:
        said = self.task.architecture.describe(told.proposal.point)
        if told.proposal.train_s:
            said = f"{said}, distilled for {told.proposal.train_s:.0f} s"
        return f"{said}, going on from trial {told.proposal.inherits}" if told.proposal.inherits is not None else said

    def _fate(self, told: Told, judged: Judged | None, children: Sequence[int]) -> tuple[bool, str]:
        if told.state == "cancelled":
            return False, "Cancelled before it ended."
        if judged is None:
            message = (
                (told.problem or {}).get("message") or (told.problem or {}).get("detail") or "it could not be made"
            )
            return False, f"Failed: {message}"
        went_on = f" Trial{'s' if len(children) > 1 else ''} {_listed(children)} went on from it." if children else ""
        breaks = _broken(judged)
        if told.number == self.chosen:
            if judged.found.rank < 2:
                return True, f"The result: the least {self._cost_name} of what holds every limit.{went_on}"
            return True, f"The result: nothing comes nearer to the goal. {breaks}{went_on}"
        if told.number in self._front:
            stands = breaks or _undecided(judged) or "It holds every limit."
            return True, f"On the front: nothing has less {self._cost_name} and loses less. {stands}{went_on}"
        better = self._beaten_by(told.number)
        beaten = f"Trial {better} has no more {self._cost_name} and loses no more." if better is not None else ""
        stands = breaks or _undecided(judged)
        return bool(children), " ".join(part for part in (beaten, stands, went_on.strip()) if part)

    @property
    def _cost_name(self) -> str:
        return _COSTS[self.task.spec.goal.minimise]

    def _beaten_by(self, number: int) -> int | None:
        own = self._points[number]
        better = [other for other in self._front if all(a <= b for a, b in zip(self._points[other], own, strict=True))]
        return next(iter(better), None)

    # What there is to choose from

    def front_points(self) -> Iterator[FrontPoint]:
        """Yield the trials that no other one beats, the least cost first."""
        for number in self._front:
            judged = self.ledger.by_number[number]
            proposal = judged.told.proposal
            yield FrontPoint(
                trial=number,
                point=judged.point,
                level=proposal.level,
                tried=self._tried(judged.told),
                recipe=recipe_of(
                    judged.point,
                    self.task.architecture,
                    train_s=judged.trained_s,
                    level=proposal.level,
                    seed=self.task.spec.seed,
                ),
                predicted=proposal.predicted,
                measured=measured(judged.values),
                holds=judged.found.rank == 0,
            )

    def nearest(self) -> Iterator[NearPoint]:
        """Yield the trials that come nearest to a goal that the result does not hold."""
        fails = {
            number: limits
            for number, limits in self._shortfalls.items()
            if self.ledger.by_number[number].found.rank == 2
        }
        for near in front.nearest(fails, _NEAREST):
            judged = self.ledger.by_number[near.number]
            yield NearPoint(
                trial=near.number,
                tried=self._tried(judged.told),
                measured=measured(judged.values),
                misses=tuple(
                    Miss(
                        limit=standing.limit,
                        gate=standing.gate,
                        measured=standing.measured,
                        by=standing.missing if math.isfinite(standing.missing) else None,
                    )
                    for standing in judged.found.standings
                    if standing.hold == "fails"
                ),
            )

    def limits(self) -> Iterator[LimitStanding]:
        """Yield every limit of the goal with how it stands."""
        against = {each.limit: each for each in front.hindrances(self._shortfalls)}
        for gate in self.task.spec.gates:
            name = in_words(gate)
            standings = {
                each.number: standing
                for each in self.ledger.judged
                for standing in each.found.standings
                if standing.gate == gate
            }
            known = {number: each for number, each in standings.items() if each.measured is not None}
            sign = -1.0 if gate.rule == "min" else 1.0
            best = min(known, key=lambda number: (sign * (known[number].measured or 0.0), number), default=None)
            yield LimitStanding(
                gate=gate,
                limit=name,
                held_by=sum(each.hold == "holds" for each in standings.values()),
                best=None if best is None else known[best].measured,
                best_trial=best,
                limited_by=self._limited_by(name, known, against),
            )

    def _limited_by(self, name: str, known: dict[int, Standing], against: dict[str, front.Hindrance]) -> str:
        hindrance = against.get(name)
        if not known or hindrance is None:
            return self._unhindered(known)
        near = f"trial {hindrance.number}"
        if hindrance.missing == 0 and not hindrance.against:
            return f"It can be held with all others: {near} does."
        others = " and ".join(f"“{each.limit}” by {_share(each.missing)}" for each in hindrance.against)
        if hindrance.missing == 0:
            return f"By itself it can be held, but {near}, which does, misses {others}."
        beside = f", and misses {others} besides" if others else ""
        return f"The nearest is {near}, which is {_share(hindrance.missing)} outside{beside}."

    def _unhindered(self, known: dict[int, Standing]) -> str:
        """Say how a limit stands that no candidate is known to break."""
        if not self.ledger.judged:
            return "No candidate was measured."
        if not known:
            return "It was not measured: it needs data, or labels, that the job does not have."
        undecided = sum(each.hold == "may" for each in known.values())
        if undecided:
            return f"None is outside; of {undecided} these samples are too few to say that it is inside."
        return "Every candidate that was made holds it."

    def certificates(self) -> Certificates:
        """Give predicted latency beside what was measured of composed networks."""
        compared = []
        for each in self.ledger.judged:
            predicted, ratio = each.told.proposal.predicted, each.values.latency
            if predicted is None or ratio is None or not each.values.latency_stable:
                continue
            error = abs(predicted.latency_ratio - ratio.value) / max(ratio.value, 1e-12)
            compared.append(
                Certificate(
                    trial=each.number,
                    predicted=round(predicted.latency_ratio, 4),
                    measured=round(ratio.value, 4),
                    error=round(error, 4),
                )
            )
        errors = [each.error for each in compared]
        return Certificates(compared=tuple(compared), median_error=round(median(errors), 4) if errors else None)


def _broken(judged: Judged) -> str:
    missed = [each for each in judged.found.standings if each.hold == "fails"]
    if not missed:
        return ""
    return "It misses " + " and ".join(f"“{each.limit}” by {_share(each.missing)}" for each in missed) + "."


def _undecided(judged: Judged) -> str:
    undecided = [each.limit for each in judged.found.standings if each.hold == "may"]
    if not undecided:
        return ""
    return "These samples are too few to say that it holds " + " and ".join(f"“{each}”" for each in undecided) + "."


def _share(missing: float) -> str:
    if not math.isfinite(missing):
        return "more than can be said"
    return f"{missing:.0%}" if missing < 1 else f"{missing:.1f} times what is allowed"


def _listed(numbers: Sequence[int]) -> str:
    told = [str(number) for number in numbers]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
