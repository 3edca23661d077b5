"""What a search has tried, what there is to choose from, points made real, pauses."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.dependencies import ReadScope, WriteScope
from api.errors import problems
from api.json_body import JSON_BODY
from api.schemas import IdempotencyKey, JobView, PageSize
from api.search_schemas import FrontView, PickBody, TrialPage, TrialView
from services import fronts, jobs, pauses, trials

router = APIRouter(prefix="/v1/jobs", tags=["searches"])

Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="Of a trial.")]
After = Annotated[int, Query(ge=0, le=2**31 - 1, description="`next_after` of the page before.")]


@router.get("/{job_id}/trials", responses=problems(403, 404, 409))
def list_trials(job_id: str, scope: ReadScope, limit: PageSize = 50, after: After = 0) -> TrialPage:
    """List what a search has tried, tries and is about to try, in the order in which it was proposed."""
    source = fronts.searched(scope.session, jobs.get(scope.session, scope.tenant_id, job_id))
    rows = trials.list_trials(scope.session, scope.tenant_id, source.id, after=after, limit=limit + 1)
    shown = [TrialView.of(row) for row in rows[:limit]]
    return TrialPage(items=shown, next_after=shown[-1].number if len(rows) > limit else None)


@router.get("/{job_id}/front", responses=problems(403, 404, 409))
def get_front(job_id: str, scope: ReadScope) -> FrontView:
    """Give the candidates of a search that no other beats in what it minimises and in quality; while it goes on, those so far."""
    return FrontView.of(fronts.front(scope.session, scope.tenant_id, job_id))


@router.post(
    "/{job_id}/front/{number}:pick",
    status_code=202,
    dependencies=JSON_BODY,
    responses=problems(403, 404, 408, 409, 413, 415),
)
def pick_point(  # noqa: PLR0917 - FastAPI names them
    job_id: str,
    number: Number,
    body: PickBody,
    scope: WriteScope,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Make a point of a search's front real, as a new job, and measure it on the samples that judge; nothing is searched again.

    It starts from the candidate's network where that is still stored, else it follows the point's recipe.
    """
    gates = None if body.gates is None else tuple(body.gates)
    submission = fronts.pick(
        scope.session,
        scope.tenant_id,
        job_id,
        fronts.Pick(number, gates, body.labels, body.priority),
        key_id=scope.caller.key_id,
        idempotency_key=idempotency_key,
        settings=scope.resources.settings,
    )
    scope.subject = submission.job.id
    response.headers["Location"] = f"/v1/jobs/{submission.job.id}"
    response.headers["Retry-After"] = "1"
    return JobView.of(submission.job)


@router.post("/{job_id}:pause", responses=problems(403, 404, 409))
def pause_job(job_id: str, scope: WriteScope) -> JobView:
    """Queue nothing more of a search, and let end what runs; the time until `:resume` does not count against its budget."""
    return JobView.of(pauses.pause(scope.session, scope.tenant_id, job_id))


@router.post("/{job_id}:resume", responses=problems(403, 404, 409))
def resume_job(job_id: str, scope: WriteScope) -> JobView:
    """Go on with a paused search where it was; 409 where it is not paused."""
    return JobView.of(pauses.resume(scope.session, scope.tenant_id, job_id))
