"""From files on this machine to a job that was asked for: what `compress` and `profile` have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxpress import wording
from onnxpress.client import Client
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import UsageError, error_for
from onnxpress.file_transfer import Digested, digest
from onnxpress.goal import with_limits
from onnxpress.idempotency import idempotency_key, run_id
from onnxpress.interrupts import cancelled_on_interrupt
from onnxpress.live_progress import LiveProgress
from onnxpress.live_search import wait_for
from onnxpress.loss_limit import loss_limit
from onnxpress.model_names import is_id, is_stored_model
from onnxpress.network_files import digest_network
from onnxpress.problem import Problem
from onnxpress.terminal import give, give_json, people, tell

# Of one step of a pipeline.
_MOST_ATTEMPTS = 100


class Submission:
    """A spec with its idempotency key: sending it again gives the same job, unless that came to nothing."""

    def __init__(self, client: Client, spec: Mapping[str, Any], key: str) -> None:
        self._client = client
        self.spec = spec
        self._key = key
        self._sent = False
        self._job: Job | None = None

    def send(self) -> Job:
        """Submit, or learn which job was submitted, by an attempt before too.

        A job that was cancelled or failed answers nobody: the next key of the row makes another one.
        """
        self._sent = True
        for turn in range(_MOST_ATTEMPTS):
            key = self._key if not turn else idempotency_key(self._key, run=str(turn))
            self._job = self._client.jobs.submit(self.spec, idempotency_key=key)
            if self._job.succeeded or not self._job.finished:
                return self._job
        raise UsageError(
            f"{_MOST_ATTEMPTS} jobs of this run were cancelled or failed; set ONNXPRESS_RUN_ID to begin anew"
        )

    def job_id(self) -> str | None:
        """Give the id of the job if there may be one; an answer that an interrupt lost is asked for again."""
        if self._job is not None:
            return self._job.id
        return self.send().id if self._sent else None


@dataclass(frozen=True)
class AllowedLoss:
    """How much of what the network decides may be lost, as a share; `asked`: somebody said so, else it is what is usual."""

    drop: float
    asked: bool


@dataclass(frozen=True)
class JobRequest:
    """What is asked for: a spec without ids, and the files or ids that it is about."""

    spec: dict[str, Any]
    model: str
    data: str | None = None
    metric: str | None = None
    baseline: str | None = None
    # A second dataset, which alone judges.
    judge: str | None = None
    # Networks that a compression starts from, and learns from, instead of the model.
    student: str | None = None
    teacher: str | None = None
    # What this limits is known once the files are there.
    loss: AllowedLoss | None = None


def submit(
    client: Client,
    request: JobRequest,
    deadline: Deadline,
    *,
    wait: bool,
    keep: bool,
    as_json: bool,
    on_job: Callable[[Job], None] | None = None,
    silent: bool = False,
) -> Job | None:
    """Upload, submit and wait; gives the finished job, or None where nobody waits for it.

    `on_job` hears of the job as soon as there is one. A `silent` one's id does not go to stdout.
    """
    with LiveProgress(people()) as live:
        submission = _prepare(client, request, live, deadline)
        with cancelled_on_interrupt(client, submission.job_id, keep=keep):
            job = submission.send()
            if on_job is not None:
                on_job(job)
            if not (as_json or silent):
                give(job.id)
            live.say(f"submitted {job.id}")
            if job.cache == "hit":
                live.say(f"answered by the result of {job.document.get('cached_from')}; --no-cache does the work again")
            for warning in job.warnings:
                live.warn(warning)
            if wait:
                return wait_for(client, job.id, deadline, live)
    if as_json:
        give_json({"job": job.document, "exit_code": 0})
    return None


def dry_run_submission(client: Client, request: JobRequest, deadline: Deadline, *, as_json: bool) -> None:
    """Show what would come of the job; a refusal ends as it would."""
    with LiveProgress(people()) as live:
        submission = _prepare(client, request, live, deadline)
    found = client.jobs.validate(submission.spec)
    if not found["valid"]:
        problem = Problem.from_document(found["problem"])
        raise error_for(problem)
    for warning in found["warnings"]:
        tell(f"warning: {warning}")
    for gate in found.get("gate_samples") or ():
        usually = f", about {gate['usually']} where some decisions change" if gate.get("usually") else ""
        named = f"gate {gate['gate']} {gate['rule']} {wording.limit_value(gate['value'])}"
        tell(f"{named}: takes {gate['needed']} samples{usually}; {gate['judging']} judge")
    if found["cached_from"]:
        tell(f"the result of {found['cached_from']} would answer at once")
    if found.get("estimate"):
        tell(f"estimate: {found['estimate']['summary']}")
    tell("the job would be accepted")
    if as_json:
        give_json({"plan": found, "exit_code": 0})


def _prepare(client: Client, request: JobRequest, live: LiveProgress, deadline: Deadline) -> Submission:
    """Upload what is not stored yet and give the job that can now be asked for."""
    run = run_id()
    sender = _Sender(client, live, run, deadline)
    # All files are hashed before the first is sent: one that is missing costs no upload.
    model = request.model if is_stored_model(request.model) else digest_network(request.model)
    named_networks = {"baseline": request.baseline, "student": request.student, "teacher": request.teacher}
    others = {
        role: named if is_stored_model(named) else digest_network(named)
        for role, named in named_networks.items()
        if named is not None
    }
    data = request.data if request.data is None or is_id(request.data, "dst_") else digest(request.data)
    judge = request.judge if request.judge is None or is_id(request.judge, "dst_") else digest(request.judge)
    spec = {**request.spec, "model": model if isinstance(model, str) else sender.model(model)}
    spec |= {role: other if isinstance(other, str) else sender.model(other) for role, other in others.items()}
    if data is not None:
        spec["dataset"] = data if isinstance(data, str) else sender.dataset(data, request.metric)
    if judge is not None:
        spec["judge"] = judge if isinstance(judge, str) else sender.dataset(judge, request.metric)
    spec = _with_loss(client, spec, request.loss, live)
    named = [model, *others.values(), data, *((judge,) if judge is not None else ())]
    content = [one.sha256 if isinstance(one, Digested) else one for one in named]
    # A network may be the student in one run and the teacher in another.
    roles = [role for role in others if role != "baseline"]
    asked = {**request.spec, "roles": roles} if roles else request.spec
    asked = asked if request.loss is None else {**asked, "max_drop": request.loss.drop}
    return Submission(client, spec, idempotency_key("job", content, request.metric, asked, run=run))


def _with_loss(client: Client, spec: dict[str, Any], loss: AllowedLoss | None, live: LiveProgress) -> dict[str, Any]:
    """Add the limit on what may be lost, and say which one it is for this network and its data."""
    if loss is None:
        return spec
    judging = spec.get("judge") or spec.get("dataset")
    data = None if judging is None else client.datasets.get(judging)
    try:
        limit = loss_limit(loss.drop, client.models.get(spec["model"]), data, spec.get("outputs", {}))
    except UsageError:
        if loss.asked:
            raise
        live.say("no limit on quality: what each output may lose at most is up to the service; --max-drop says it")
        return spec
    live.say(f"limit: {limit.words}" + ("" if loss.asked else "; --max-drop says otherwise"))
    return with_limits(spec, [limit.gate])


@dataclass(frozen=True)
class _Sender:
    """Uploads files under keys that make a repeated run find them again."""

    client: Client
    live: LiveProgress
    run: str
    deadline: Deadline

    def model(self, file: Digested) -> str:
        """Send a network and give its id."""
        key = idempotency_key("model", file.sha256, file.path.stem, run=self.run)
        left = self.deadline.remaining()
        with self.live.transfer(f"upload {file.path.name}") as progress:
            return self.client.models.upload(file, timeout=left, idempotency_key=key, progress=progress).id

    def dataset(self, file: Digested, metric: str | None) -> str:
        """Send data and give their id."""
        key = idempotency_key("dataset", file.sha256, file.path.stem, metric, run=self.run)
        left = self.deadline.remaining()
        with self.live.transfer(f"upload {file.path.name}") as progress:
            return self.client.datasets.upload(
                file, metric=metric, timeout=left, idempotency_key=key, progress=progress
            ).id
