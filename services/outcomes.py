"""What the end of a unit means for what it was for: an upload, an analysis, a job's result, a part of one, a trial."""

import json
from dataclasses import dataclass
from typing import assert_never

from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Dataset, Job, Model, ModelState, Prunability, Unit, text_bytes
from services import artifacts, cache, quotas, report_figures, trials
from services.claims import Result
from services.errors import AnswerInvalidError, QuotaError
from services.problems import Problem, problem
from services.storage import Store
from services.transitions import advance, record
from settings import Settings

# A job's row shows them; the report has them whole.
_FIGURES_BYTES = 512 << 10
_MOST_WARNINGS, _WARNING_LETTERS = 200, 4000
PRUNABILITY_RUNTIME_S = 300.0
PRUNABILITY_MEMORY_MB = 4096
_PRUNABILITY_LIMITS = {
    "runtime_limit": problem(
        "runtime_limit", f"The network's analysis did not end within {PRUNABILITY_RUNTIME_S:.0f} s.", blame="user"
    ),
    "memory_limit": problem(
        "memory_limit", f"The network's analysis needs more than {PRUNABILITY_MEMORY_MB} MiB of memory.", blame="user"
    ),
    "process_crashed": problem("process_crashed", "The network's analysis crashed each time.", blame="service"),
}


@dataclass(frozen=True)
class End:
    """A unit that ends, locked, with its job, and the store that has its files."""

    session: Session
    store: Store
    unit: Unit
    job: Job | None
    # By whose quotas its files are taken; None: there are no quotas.
    settings: Settings | None = None

    @property
    def whole_job(self) -> Job:
        """The job, of a unit that has one."""
        assert self.job is not None
        return self.job


def over_quota(end: End, result: Result) -> Problem | None:
    """Give the problem of files that are more than their tenant may store; an archive makes room for what was in it."""
    if end.settings is None:
        return None
    files = [file.writer.finish() for file in (*result.model_files, *result.report_files)]
    subject = end.session.get(Model, end.unit.model_id) if result.answer.leaves == "unpacked" else None
    archive = subject.artifact.size if subject is not None and subject.artifact is not None else 0
    try:
        quotas.check_files(end.session, end.unit.tenant_id, files, end.settings, instead_of=archive)
    except QuotaError as error:
        return problem(error.exact_code, error.message, blame="user", retryable=True, hint=error.hint)
    return None


def accept_upload(end: End, result: Result) -> Problem | None:
    """Make an inspected upload ready; gives the problem of data that do not fit the network that they were declared for.

    The files out of a network's archive take its place.
    """
    inspection = result.answer.value
    assert isinstance(inspection, engine.Inspection | engine.DatasetInspection)
    subject = _subject(end)
    misfit = _misfit(end, inspection) if isinstance(inspection, engine.DatasetInspection) else None
    if misfit is not None:
        return misfit
    if result.model_files and isinstance(subject, Model):
        artifacts.unpacked(end.session, end.store, subject, result.model_files)
    artifacts.accept(end.session, subject, inspection.model_dump(mode="json"))
    return None


def reject_upload(end: End, reason: Problem) -> None:
    """Refuse what could not be inspected."""
    artifacts.reject(end.session, end.store, _subject(end), reason)


def keep_prunability(end: End, result: Result) -> None:
    """Keep what of a network could be pruned."""
    assert isinstance(result.answer.value, engine.Prunability)
    row = _prunability(end)
    if row is not None:
        row.result = result.answer.value.model_dump(mode="json")
        end.session.get_one(Model, end.unit.model_id).add_bytes(text_bytes(row.result))


def fail_prunability(end: End, reason: Problem) -> None:
    """Keep why nothing is known of what could be pruned."""
    row = _prunability(end)
    if row is not None:
        row.problem = _PRUNABILITY_LIMITS.get(reason["code"], reason)


def keep_report(end: End, result: Result) -> None:
    """Make a job's result its own: report, verdict, figures, and the network where it has made one."""
    job, report = end.whole_job, result.answer.value
    assert isinstance(report, engine.Report | engine.ProfileReport)
    told = report.model_dump(mode="json")
    match report:
        case engine.Report():
            _keep_output(end, result)
            job.measured_on = cache.machine(told["environment"], "cpu_flags")
            job.summary, job.steps = report_figures.of_compression(told), report_figures.passes(told)
        case engine.ProfileReport():
            job.summary, job.steps = report_figures.of_profile(told), report_figures.targets(told)
        case _:
            assert_never(report)
    _check_figures(job)
    job.report_digest = artifacts.store_files(end.session, job.tenant_id, "report", result.report_files).digest
    job.verdict = report.verdict.outcome
    warnings = [*job.warnings, *(warning[:_WARNING_LETTERS] for warning in told["warnings"])]
    job.warnings = [*dict.fromkeys(warnings)][:_MOST_WARNINGS]


def keep_part(end: End, result: Result) -> None:
    """Leave the report of some targets to the unit that puts all of them together."""
    job, report = end.whole_job, result.answer.value
    assert isinstance(report, engine.ProfileReport)
    told = report.model_dump(mode="json")
    end.unit.result = {"report": told}
    measured = {step["index"]: step for step in report_figures.targets(told)}
    job.steps = [measured.get(step["index"], step) for step in job.steps]
    _check_figures(job)
    record(end.session, job, "targets_measured", {"targets": end.unit.payload["targets"]}, end.unit)


def fail_part(end: End, reason: Problem) -> None:
    """Note that some targets have no result; the others may have one."""
    job, chosen = end.whole_job, set(end.unit.payload["targets"])
    why = {"status": "failed", "reason": reason["message"]}
    job.steps = [{**step, **why} if step["index"] in chosen else step for step in job.steps]
    record(end.session, job, "targets_failed", {"targets": sorted(chosen), "code": reason["code"]}, end.unit)


def keep_trial(end: End, result: Result) -> None:
    """Keep what was measured of a candidate."""
    trials.succeed(end.session, end.whole_job, end.unit, result)


def fail_trial(end: End, reason: Problem) -> None:
    """Keep why a candidate could not be tried."""
    trials.fail(end.session, end.whole_job, end.unit, reason)


def _check_figures(job: Job) -> None:
    for told in (job.summary, job.steps):
        size = len(json.dumps(told))
        if size > _FIGURES_BYTES:
            raise AnswerInvalidError(f"figures of {size} bytes; {_FIGURES_BYTES} are the limit")


def _keep_output(end: End, result: Result) -> None:
    job, inspection = end.whole_job, result.answer.inspection
    assert inspection is not None
    output = end.session.get_one(Model, job.output_model_id)
    output.artifact_digest = artifacts.store_files(end.session, job.tenant_id, "model", result.model_files).digest
    output.inspection = inspection.model_dump(mode="json")
    advance(end.session, output, ModelState.READY)


def _subject(end: End) -> Model | Dataset:
    if end.unit.model_id is not None:
        return end.session.get_one(Model, end.unit.model_id)
    return end.session.get_one(Dataset, end.unit.dataset_id)


def _misfit(end: End, inspection: "engine.DatasetInspection") -> Problem | None:
    model = end.session.get(Model, end.unit.payload["fits"]) if "fits" in end.unit.payload else None
    if model is None:
        return None
    try:
        engine.check_arrays(engine.Inspection.model_validate(model.inspection), inspection)
    except engine.EngineError as error:
        return error.problem()
    return None


def _prunability(end: End) -> Prunability | None:
    """Give the row that waits for the unit: none where the network was deleted, or another one was asked since."""
    asked = select(Prunability).where(Prunability.tenant_id == end.unit.tenant_id, Prunability.unit_id == end.unit.id)
    return end.session.scalars(asked.where(Prunability.digest == end.unit.payload["digest"])).one_or_none()
