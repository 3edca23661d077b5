"""Searches as jobs of many units: a coordinator that takes turns, candidates that it proposes, parts of a library that it needs.

Nothing of a search is kept but rows: each turn is worked out anew from the library and from what came of the trials.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Job, Trial, TrialState, Unit, UnitStatus
from services import db, outcomes, trials, variant_library, workers
from services.claims import Answer, Asked, Candidate, Child, Claim, Input, Limits, Order, Piece, Result, StepBack
from services.errors import AnswerInvalidError, RejectedError
from services.outcomes import End
from services.problems import Problem
from services.routing import provider_of, run_queue

_PART = TypeAdapter(str)
_MOST_PART_LETTERS = 1000
_NO_TRAINING = (
    "No worker of this search's class of machines has PyTorch: its candidates are refitted, and none is distilled."
)


def spec_of(job: Job, coordinator: Unit) -> "engine.Search":
    """Give what a search is asked for, less the training where no worker of its class has PyTorch."""
    spec = engine.read_spec(job.spec)
    assert isinstance(spec, engine.Search)
    if coordinator.payload.get("trains") is False:
        return spec.model_copy(update={"space": spec.space.model_copy(update={"train": False})})
    return spec


def check_budget(spec: "engine.Spec") -> None:
    """Raise RejectedError for a search that may take longer than one of its units may run."""
    if not isinstance(spec, engine.Search):
        return
    seconds, _ = spec.allowed
    if seconds > spec.limits.max_runtime_s:
        raise RejectedError(
            f"The search may take {seconds:.0f} s, but limits.max_runtime_s ends it after {spec.limits.max_runtime_s} s.",
            code="budget_over_limit",
            hint="Lower budget.max_seconds or goal.effort, or raise limits.max_runtime_s.",
        )


def queue_of(session: Session, spec: "engine.Search") -> str:
    """Give the queue of a search's coordinator: where a worker trains, one that does has the first turn, for its class is kept."""
    training = run_queue(spec.target.provider, trains=True)
    if spec.space.train and workers.has_live(session, training):
        return training
    return run_queue(spec.target.provider)


def settle_class(session: Session, unit: Unit, queues: Collection[str] | None, classes: Collection[str]) -> None:
    """Keep a search to the class of machines that has taken its first turn: figures of others would not compare.

    Whether it trains is settled too, by whether anybody of that class does.
    """
    if unit.target_class is not None or "trains" in unit.payload:
        return
    provider = provider_of(unit.queue)
    unit.target_class = next((name for name in sorted(classes) if name.startswith(f"{provider}/")), None)
    training = run_queue(str(provider), trains=True)
    trains = training in (queues or (unit.queue,)) or workers.has_live(session, training, unit.target_class)
    unit.payload = {**unit.payload, "trains": trains}
    job = session.get_one(Job, unit.job_id)
    if not trains and job.spec["space"]["train"]:
        job.warnings = [*job.warnings, _NO_TRAINING]


def most_in_flight(session: Session, job: Job) -> int:
    """Give how many units of a search may be queued or running: as many as its live workers take at a time, at least one.

    A job may have a number of its own.
    """
    if job.max_units_in_flight is not None:
        return job.max_units_in_flight
    coordinator = coordinator_of(session, job)
    return max(1, workers.slots(session, str(provider_of(coordinator.queue)), coordinator.target_class))


def coordinator_of(session: Session, job: Job) -> Unit:
    """Give the unit that takes a search's turns."""
    return session.scalars(select(Unit).where(Unit.job_id == job.id, Unit.parent_id.is_(None))).one()


def elapsed_s(session: Session, job: Job) -> float:
    """Give the seconds since a job began, without those that it was paused."""
    if job.started_at is None:
        return 0.0
    moment = job.paused_at or job.finished_at or db.now(session)
    return max(0.0, (moment - job.started_at).total_seconds() - job.paused_s)


def order_turn(session: Session, unit: Unit, job: Job | None, _inputs: tuple[Input, ...]) -> Order:
    """Tell the coordinator all that it decides by."""
    assert job is not None
    spec = spec_of(job, unit)
    library = variant_library.name(session, job, spec, unit.target_class)
    failed = _failed_parts(session, unit)
    return Order(
        "search",
        {
            "spec": spec.model_dump(mode="json"),
            "told": [trials.told(trial) for trial in _trials(session, job)],
            # A part that could not be measured says nothing, and the search goes on without it.
            "pieces": {**{part: {} for part in failed}, **variant_library.pieces(session, job.tenant_id, library)},
            "elapsed_s": elapsed_s(session, job),
            "workers": most_in_flight(session, job),
        },
    )


def order_trial(session: Session, unit: Unit, job: Job | None, _inputs: tuple[Input, ...]) -> Order:
    """Tell a candidate's process what to make."""
    assert job is not None
    spec = spec_of(job, _parent(session, unit))
    return Order("trial", {"spec": spec.model_dump(mode="json"), "proposal": unit.payload["proposal"]})


def order_variants(session: Session, unit: Unit, job: Job | None, _inputs: tuple[Input, ...]) -> Order:
    """Tell a process which part of the library to measure."""
    assert job is not None
    spec = spec_of(job, _parent(session, unit))
    return Order("variants", {"spec": spec.model_dump(mode="json"), "part": unit.payload["part"]})


def network_for_turn(session: Session, unit: Unit) -> dict[str, Trial]:
    """Give the trial whose network a coordinator has asked for, by its place in the workspace."""
    number = (unit.continuation or {}).get("needs")
    return {} if number is None else {"trial": session.get_one(Trial, (unit.job_id, number))}


def network_for_trial(session: Session, unit: Unit) -> dict[str, Trial]:
    """Give the trial whose network a candidate goes on from, by its place in the workspace."""
    number = unit.payload["proposal"].get("inherits")
    return {} if number is None else {"inherited": session.get_one(Trial, (unit.job_id, number))}


def read_turn(claim: Claim, value: Mapping[str, Any]) -> Answer:
    """Read a coordinator's turn: work for children, a network that it needs, or the job's report."""
    if "report" in value:
        report = engine.read_report(value["report"])
        if not isinstance(report, engine.Report) or report.kind != "search" or report.search is None:
            raise AnswerInvalidError("a search's report says what was searched")
        return Answer(report, "network", engine.Inspection.model_validate(value.get("inspection")))
    turn = engine.read_turn(value)
    state = {"turn": int(claim.attempt)}
    if isinstance(turn, engine.MeasureVariants):
        spawn = tuple(Child(kind="variants", payload={"part": part}) for part in turn.parts)
        return Answer(StepBack(spawn=spawn, state=state))
    if isinstance(turn, engine.TryProposals):
        proposals = [proposal.model_dump(mode="json") for proposal in turn.proposals]
        spawn = tuple(Child(kind="trial", payload={"proposal": proposal}) for proposal in proposals)
        return Answer(StepBack(spawn=spawn, state=state, drop=turn.drop))
    if turn.trial is None:
        raise AnswerInvalidError("a search that ends with the original has its report at once")
    return Answer(StepBack(state=state, needs=turn.trial))


def read_candidate(_claim: Claim, value: Mapping[str, Any]) -> Answer:
    """Read what was measured of a candidate, and what the network is that comes with it."""
    values = engine.TrialValues.model_validate(value.get("values"))
    recipe = value.get("recipe")
    checked = None if recipe is None else TypeAdapter(tuple[dict[str, Any], ...]).validate_python(recipe)
    inspection = engine.Inspection.model_validate(value.get("inspection"))
    return Answer(Candidate(values, checked), "candidate", inspection)


def read_piece(_claim: Claim, value: Mapping[str, Any]) -> Answer:
    """Read what was measured of a part of the library."""
    return Answer(Piece(TypeAdapter(dict[str, Any]).validate_python(value.get("piece"))))


def check_turn(session: Session, job: Job, asked: StepBack) -> None:
    """Raise AnswerInvalidError for a turn that needs the network of a trial that has none, or a part that failed already."""
    proposals = [child.payload.get("proposal") or {} for child in asked.spawn]
    numbers = {asked.needs, *(one.get("inherits") for one in proposals)}
    for number in sorted(int(number) for number in numbers if number is not None):
        trial = session.get(Trial, (job.id, number))
        if trial is None or trial.artifact_digest is None or number in asked.drop:
            raise AnswerInvalidError(f"the trial {number} has no network to go on from")
    coordinator = coordinator_of(session, job)
    if asked.needs is not None and (coordinator.continuation or {}).get("needs") == asked.needs:
        raise AnswerInvalidError(f"the turn had the network of trial {asked.needs}, and asks for it again")
    again = {child.payload.get("part") for child in asked.spawn} & set(_failed_parts(session, coordinator))
    if again:
        raise AnswerInvalidError(f"the parts {sorted(map(str, again))} cannot be measured")


def asked_trial(job: Job, payload: Mapping[str, Any]) -> Asked:
    """Try a proposal, on a worker with PyTorch where it is distilled."""
    spec, proposal = engine.read_spec(job.spec), engine.Proposal.model_validate(payload.get("proposal"))
    queue = run_queue(engine.targets_of(spec)[0].provider, trains=proposal.train_s > 0)
    return Asked(queue, Limits.of(spec), {"proposal": proposal.model_dump(mode="json")})


def asked_variants(job: Job, payload: Mapping[str, Any]) -> Asked:
    """Measure a part of the library."""
    spec, part = engine.read_spec(job.spec), _PART.validate_python(payload.get("part"), strict=True)
    if not 0 < len(part) <= _MOST_PART_LETTERS:
        raise ValueError("a part has a name")
    return Asked(run_queue(engine.targets_of(spec)[0].provider), Limits.of(spec), {"part": part})


def propose(session: Session, job: Job, unit: Unit) -> None:
    """Note the candidate of a new unit."""
    trials.propose(session, job, unit, unit.payload["proposal"])


def keep_piece(end: End, result: Result) -> None:
    """Store what was measured, for this search and later ones."""
    assert isinstance(result.answer.value, Piece)
    session, job = end.session, end.whole_job
    coordinator = _parent(session, end.unit)
    library = variant_library.name(session, job, spec_of(job, coordinator), coordinator.target_class)
    variant_library.keep(session, job, library, end.unit.payload["part"], result.answer.value.value)


def keep_report(end: End, result: Result) -> None:
    """Make the result the job's, and give up the candidates that nobody has a use for."""
    outcomes.keep_report(end, result)
    report = result.answer.value
    assert isinstance(report, engine.Report)
    assert report.search is not None
    job, found = end.whole_job, report.search
    recipes = {point.trial: [dict(one) for one in point.recipe] for point in found.front}
    for trial in _trials(end.session, job):
        trial.recipe = recipes.get(trial.number, trial.recipe)
    job.summary = {
        **(job.summary or {}),
        "search": {
            "trials": found.trials.model_dump(mode="json"),
            "front": [point.trial for point in found.front],
            "chosen": found.chosen,
            "met": found.met,
            "stopped": found.stopped,
        },
    }
    give_up_candidates(end, kept=[found.chosen, *recipes])


def fail_turn(end: End, _problem: Problem) -> None:
    """Keep the front of a search that has failed all the same."""
    give_up_candidates(end)


def give_up_candidates(end: End, kept: Collection[int | None] = ()) -> None:
    """Drop the networks of all trials but those on the front."""
    front = {trial.number for trial in trials.front(end.session, end.whole_job)}
    for trial in _trials(end.session, end.whole_job):
        is_there = trial.in_state is TrialState.SUCCEEDED and trial.artifact_digest is not None
        if is_there and trial.number not in front and trial.number not in kept:
            trials.drop(end.session, end.store, trial)


def _trials(session: Session, job: Job) -> list[Trial]:
    return trials.list_trials(session, job.tenant_id, job.id)


def _parent(session: Session, unit: Unit) -> Unit:
    return session.get_one(Unit, unit.parent_id)


def _failed_parts(session: Session, coordinator: Unit) -> list[str]:
    asked = select(Unit).where(
        Unit.parent_id == coordinator.id, Unit.kind == "variants", Unit.status == UnitStatus.FAILED
    )
    return [unit.payload["part"] for unit in session.scalars(asked)]
