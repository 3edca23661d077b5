"""From files on this machine to a job that was asked for: what `compress` and `profile` have in common."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxpress import recipe as recipes
from onnxpress.client import Client
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import Problem, error_for
from onnxpress.files import Digested, digest
from onnxpress.live import Live
from onnxpress.submission import Submission, cancelled_on_interrupt
from onnxpress.terminal import give, give_json, people, tell
from onnxpress.verbs.options import is_id


@dataclass(frozen=True)
class Wish:
    """What is asked for: a spec without ids, and the files or ids that it is about."""

    spec: dict[str, Any]
    model: str
    data: str | None = None
    metric: str | None = None
    baseline: str | None = None


def ask(client: Client, wish: Wish, deadline: Deadline, *, wait: bool, keep: bool, as_json: bool) -> Job | None:
    """Upload, submit and wait; gives the finished job, or None where nobody waits for it."""
    with Live(people()) as live:
        submission = _prepare(client, wish, live, deadline)
        with cancelled_on_interrupt(client, submission.job_id, keep=keep):
            job = submission.send()
            if not as_json:
                give(job.id)
            live.say(f"submitted {job.id}")
            if job.cache == "hit":
                live.say(f"answered by the result of {job.document.get('cached_from')}; --no-cache does the work again")
            for warning in job.warnings:
                live.say(f"warning: {warning}")
            if wait:
                return client.jobs.wait(job.id, timeout=deadline.remaining(), on_update=live.update)
    if as_json:
        give_json({"job": job.document, "exit_code": 0})
    return None


def plan(client: Client, wish: Wish, deadline: Deadline, *, as_json: bool) -> None:
    """Show what would come of the job; a refusal ends as it would."""
    with Live(people()) as live:
        submission = _prepare(client, wish, live, deadline)
    found = client.jobs.validate(submission.spec)
    if not found["valid"]:
        problem = Problem.from_document(found["problem"])
        raise error_for(problem)
    for warning in found["warnings"]:
        tell(f"warning: {warning}")
    if found["cached_from"]:
        tell(f"the result of {found['cached_from']} would answer at once")
    tell("the job would be accepted")
    if as_json:
        give_json({"plan": found, "exit_code": 0})


def report_text(client: Client, job_id: str, path: Path) -> str:
    """Give a report in the form that a file's name asks for: JSON, JUnit for .xml, Prometheus for .prom, else Markdown."""
    match path.suffix:
        case ".json":
            return json.dumps(client.jobs.report(job_id), indent=2)
        case ".xml":
            return client.jobs.report_as(job_id, "junit.xml")
        case ".prom":
            return client.jobs.report_as(job_id, "prom")
    return client.jobs.report_markdown(job_id)


def _prepare(client: Client, wish: Wish, live: Live, deadline: Deadline) -> Submission:
    """Upload what is not stored yet and give the job that can now be asked for."""
    run = recipes.run_id()
    sender = _Sender(client, live, run, deadline)
    # All files are hashed before the first is sent: one that is missing costs no upload.
    model = wish.model if is_id(wish.model, "mdl_") else digest(wish.model)
    baseline = wish.baseline if wish.baseline is None or is_id(wish.baseline, "mdl_") else digest(wish.baseline)
    data = wish.data if wish.data is None or is_id(wish.data, "dst_") else digest(wish.data)
    spec = {**wish.spec, "model": model if isinstance(model, str) else sender.model(model)}
    if baseline is not None:
        spec["baseline"] = baseline if isinstance(baseline, str) else sender.model(baseline)
    if data is not None:
        spec["dataset"] = data if isinstance(data, str) else sender.dataset(data, wish.metric)
    named = (model, data) if baseline is None else (model, baseline, data)
    content = [one.sha256 if isinstance(one, Digested) else one for one in named]
    return Submission(client, spec, recipes.idempotency_key("job", content, wish.metric, wish.spec, run=run))


@dataclass(frozen=True)
class _Sender:
    """Uploads files under keys that make a repeated run find them again."""

    client: Client
    live: Live
    run: str
    deadline: Deadline

    def model(self, file: Digested) -> str:
        """Send a network and give its id."""
        key = recipes.idempotency_key("model", file.sha256, file.path.stem, run=self.run)
        left = self.deadline.remaining()
        with self.live.transfer(f"upload {file.path.name}") as progress:
            return self.client.models.upload(file, timeout=left, idempotency_key=key, progress=progress).id

    def dataset(self, file: Digested, metric: str | None) -> str:
        """Send data and give their id."""
        key = recipes.idempotency_key("dataset", file.sha256, file.path.stem, metric, run=self.run)
        left = self.deadline.remaining()
        with self.live.transfer(f"upload {file.path.name}") as progress:
            return self.client.datasets.upload(
                file, metric=metric, timeout=left, idempotency_key=key, progress=progress
            ).id
