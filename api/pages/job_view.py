"""What pages show of jobs, as values for templates."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

import engine
import models
from api.dependencies import TenantScope
from api.pages.rendering import change
from models import Job, JobStatus, Trial, TrialState
from services import fronts, jobs, overview, trials

_PRECISIONS = {
    "float16": "16-bit floats",
    "static": "8-bit integers",
    "dynamic": "8-bit integers with ranges per run",
    "weights8": "weights in 8 bits",
    "weights4": "weights in 4 bits",
}


def row_values(session: Session, tenant_id: str, rows: Sequence[Job]) -> list[dict[str, Any]]:
    """Give what a list shows of each job."""
    names = overview.model_names(session, tenant_id, {job.model_id for job in rows})
    places = overview.places(session, rows)
    return [
        {
            "job": job,
            "model": names.get(job.model_id, "a network"),
            "final": models.is_final(job.in_status),
            "now": now(job),
            "place": places.get(job.id),
            "fraction": overview.share_done(session, job),
            "seconds_left": overview.seconds_left(session, job),
            "figures": list(headline(job)),
        }
        for job in rows
    ]


def now(job: Job) -> str:
    """Say in a few words what a job does or how it ended."""
    progress = job.progress or {}
    if job.in_status is JobStatus.FAILED and job.problem:
        return str(job.problem.get("message", ""))
    if models.is_final(job.in_status):
        return str((job.summary or {}).get("text", ""))
    if job.paused_at is not None:
        return "Paused."
    if job.in_status is not JobStatus.RUNNING:
        return ""
    said = str(progress.get("message") or "")
    step = progress.get("step")
    if isinstance(step, int) and step < len(job.steps):
        return f"Step {step + 1} of {len(job.steps)}, {job.steps[step]['type']}{': ' if said else ''}{said}"
    return said


def headline(job: Job) -> Sequence[tuple[str, str]]:
    """Give the main figures of a job that has ended: what changed, and to what."""
    summary = job.summary or {}
    found: list[tuple[str, str]] = []
    size, ratio = summary.get("size"), summary.get("latency_ratio")
    if size:
        found.append(("size", f"{engine.size(size['original'])} → {engine.size(size['compressed'])}"))
    if ratio and ratio["value"]:
        interval = ratio.get("interval") or {}
        told = engine.speed_between(ratio["value"], interval.get("low"), interval.get("high"))
        found.append(("speed", told))
    found += [("quality", change(quality)) for quality in (summary.get("quality") or ())[:1]]
    return found


def live_values(scope: TenantScope, job: Job) -> dict[str, Any]:
    """Give what changes on a job's page while the job goes on."""
    session, tenant_id = scope.session, scope.tenant_id
    names = overview.model_names(
        session,
        tenant_id,
        {job.model_id, job.output_model_id, job.baseline_id, job.student_id, job.teacher_id},
    )
    tried = candidates(session, job) if job.kind == "search" and not models.is_final(job.in_status) else ()
    return {
        "job": job,
        "names": names,
        "data": overview.dataset_names(session, tenant_id, {job.dataset_id, job.judge_id}),
        "final": models.is_final(job.in_status),
        "now": now(job),
        "fraction": overview.share_done(session, job),
        "place": overview.places(session, [job]).get(job.id),
        "seconds_left": overview.seconds_left(session, job),
        "figures": list(headline(job)),
        "live_figures": _search_figures(job, tried),
    }


def _search_figures(job: Job, tried: Sequence[engine.Candidate]) -> tuple[engine.Figure, ...]:
    if not tried:
        return ()
    minimise = job.spec["goal"]["minimise"]
    shown = (engine.front_figure(minimise, tried, None, live=True), engine.story_figure(minimise, tried, None))
    return tuple(figure for figure in shown if figure is not None)


def candidates(session: Session, job: Job) -> tuple[engine.Candidate, ...]:
    """Give a search's trials as they stand."""
    source = fronts.searched(session, job)
    rows = trials.list_trials(session, source.tenant_id, source.id)
    best = {trial.number for trial in trials.front(session, source)}
    return tuple(_candidate(row, on_front=row.number in best) for row in rows)


def _candidate(row: Trial, *, on_front: bool) -> engine.Candidate:
    proposal = engine.Proposal.model_validate(row.proposal)
    values = engine.TrialValues.model_validate(row.values) if row.values else None
    problem = row.problem or {}
    return engine.Candidate(
        trial=row.number,
        tried=in_words(proposal.point),
        level=proposal.level,
        state=row.state,
        measured=None if values is None or row.in_state is not TrialState.SUCCEEDED else engine.measured(values),
        recipe=row.recipe,
        on_front=on_front,
        because=proposal.because,
        why=str(problem.get("message", "")),
    )


def in_words(point: engine.Point) -> str:
    """Say what of a network a point leaves and in which precision, where only the search knows how much there was."""
    parts = []
    if point.dropped:
        parts.append(f"{len(point.dropped)} blocks dropped")
    if point.widths:
        parts.append(f"{len(point.widths)} groups narrower")
    if point.ranks:
        parts.append(f"{len(point.ranks)} layers at a lower rank")
    if point.precision in _PRECISIONS:
        parts.append(_PRECISIONS[point.precision])
    return ", ".join(parts) or "the network as it is"


def read_report(scope: TenantScope, job: Job) -> engine.AnyReport | None:
    """Give the job's report; None where it has none."""
    if job.report_digest is None:
        return None
    file = jobs.report(scope.session, scope.tenant_id, job.id)["report.json"]
    return engine.read_report(json.loads(b"".join(scope.resources.store.read(scope.tenant_id, file.sha256))))


def report_values(report: engine.AnyReport | None) -> dict[str, Any]:
    """Give what a report shows: figures, layers, gates, steps, conditions."""
    layers = engine.layers(report) if isinstance(report, engine.Report) else ()
    return {
        "report": report,
        "figures_shown": () if report is None else engine.figures(report),
        "layers": layers,
        "widest": max((layer.time_before or 0.0 for layer in layers), default=0.0),
        "loudest": max((layer.sensitivity or 0.0 for layer in layers), default=0.0),
        "largest": max((layer.bytes_before or 0 for layer in layers), default=0),
    }
