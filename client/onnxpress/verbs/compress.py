"""`onnxpress compress`: the whole way from a file to a smaller, measured and judged one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpress import recipe as recipes
from onnxpress import render
from onnxpress.client import Client
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import Problem, UsageError, error_for
from onnxpress.exits import code_of_verdict
from onnxpress.files import Digested, digest
from onnxpress.live import Live
from onnxpress.submission import Submission, cancelled_on_interrupt
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.verbs.options import AsJson, Keep, Timeout, Url, is_id, writable, write


@dataclass(frozen=True)
class Wish:
    """What is asked for: a spec without ids, what it is about, and where the results go."""

    spec: dict[str, Any]
    model: str
    data: str | None
    metric: str | None
    out: Path | None
    report: Path | None


def compress(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="ONNX file, or the id of a stored model.", show_default=False)
    ],
    *,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help=f"JSON file with a recipe or a whole job, or one of: {', '.join(recipes.RECIPES)}.",
        ),
    ],
    data: Annotated[str | None, typer.Option(metavar="FILE", help="NPZ file, or the id of a stored dataset.")] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the labels are judged by, such as top1.")
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="GATE", help=f"Repeatable: {recipes.GATE_FORM}.")
    ] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Execution provider of the target.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of the target.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Batch size of the target.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable: mark the job.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the compressed network goes.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the report goes: .json, else Markdown.")
    ] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="The higher, the sooner among your jobs.")] = None,
    cache: Annotated[bool, typer.Option(help="Let an earlier result of the same work answer.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload and check, but do not submit.")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until the result is there.")] = True,
    timeout: Timeout = None,
    keep: Keep = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Compress a network; the exit code is the verdict.

    Hashes and uploads, submits, shows progress, prints what was measured beside the original, downloads with the digest
    checked. stdout holds the job's id, or one JSON document with --json. Exit codes: 0 ok, 2 usage or spec invalid, 3 a
    gate failed, 4 the job failed, 5 service error, 6 timeout, 7 inconclusive, 130 interrupted (the remote job is
    cancelled). The network is downloaded whatever the gates say: trust the exit code.
    """
    with session(url, as_json=as_json) as client:
        if not wait and (out or report):
            raise UsageError(
                "--no-wait ends before there is a result for --out or --report; use `onnxpress download` later"
            )
        writable(out, "--out")
        writable(report, "--report")
        target = {"provider": provider, "threads": threads, "batch": batch}
        spec = _spec(recipe, gate or [], target, recipes.parse_labels(label or []))
        spec |= {} if priority is None else {"priority": priority}
        spec |= {} if cache else {"cache": "refuse"}
        wish = Wish(spec, model, data, metric, out, report)
        if dry_run:
            _plan(client, wish, Deadline.after(timeout), as_json=as_json)
            return
        _compress(client, wish, Deadline.after(timeout), wait=wait, keep=keep, as_json=as_json)


def _spec(recipe: str, gates: list[str], target: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    """Read the recipe and let the options add to it, and win where both say something."""
    spec = recipes.read_spec(recipe)
    if named := {key: value for key, value in target.items() if value is not None}:
        spec["target"] = {**spec.get("target", {}), **named}
    if gates:
        spec["gates"] = [*spec.get("gates", ()), *map(recipes.parse_gate, gates)]
    if labels:
        spec["labels"] = {**spec.get("labels", {}), **labels}
    return spec


def _compress(client: Client, wish: Wish, deadline: Deadline, *, wait: bool, keep: bool, as_json: bool) -> None:
    console = people()
    with Live(console) as live:
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
                job = client.jobs.wait(job.id, timeout=deadline.remaining(), on_update=live.update)
    if not wait:
        if as_json:
            give_json({"job": job.document, "exit_code": 0})
        return
    _deliver(client, wish, job, deadline, as_json=as_json)


def _plan(client: Client, wish: Wish, deadline: Deadline, *, as_json: bool) -> None:
    """Show what would come of the job; a refusal ends as it would."""
    with Live(people()) as live:
        submission = _prepare(client, wish, live, deadline)
    plan = client.jobs.validate(submission.spec)
    if not plan["valid"]:
        problem = Problem.from_document(plan["problem"])
        raise error_for(problem)
    for warning in plan["warnings"]:
        tell(f"warning: {warning}")
    if plan["cached_from"]:
        tell(f"the result of {plan['cached_from']} would answer at once")
    tell("the job would be accepted")
    if as_json:
        give_json({"plan": plan, "exit_code": 0})


def _prepare(client: Client, wish: Wish, live: Live, deadline: Deadline) -> Submission:
    """Upload what is not stored yet and give the job that can now be asked for."""
    run = recipes.run_id()
    sender = _Sender(client, live, run, deadline)
    # All files are hashed before the first is sent: one that is missing costs no upload.
    model = wish.model if is_id(wish.model, "mdl_") else digest(wish.model)
    data = wish.data if wish.data is None or is_id(wish.data, "dst_") else digest(wish.data)
    spec = {**wish.spec, "model": model if isinstance(model, str) else sender.model(model)}
    if data is not None:
        spec["dataset"] = data if isinstance(data, str) else sender.dataset(data, wish.metric)
    content = [one.sha256 if isinstance(one, Digested) else one for one in (model, data)]
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


def _deliver(client: Client, wish: Wish, job: Job, deadline: Deadline, *, as_json: bool) -> None:
    """Fetch the report and the network, show the result and end with the verdict's exit code."""
    report = client.jobs.report(job.id)
    if wish.report:
        write(wish.report, _report_text(client, job, report, wish.report))
    if wish.out:
        with Live(people()) as live, live.transfer(f"download {wish.out.name}") as progress:
            client.jobs.download(job.id, wish.out, progress=progress, timeout=deadline.remaining())
    title = f"{Path(wish.model).name} -> {wish.out.name if wish.out else job.output_model}"
    render.show(report, people(), title=title)
    if wish.out:
        tell(f"{wish.out}: sha256 {report['compressed']['sha256']}")
    code = code_of_verdict(job.verdict)
    if as_json:
        out = str(wish.out) if wish.out else None
        give_json({"job": job.document, "report": report, "out": out, "exit_code": int(code)})
    raise typer.Exit(code)


def _report_text(client: Client, job: Job, report: dict[str, Any], path: Path) -> str:
    return json.dumps(report, indent=2) if path.suffix == ".json" else client.jobs.report_markdown(job.id)
