"""Commands about jobs that exist: jobs, wait, cancel, report, download."""

import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from onnxpress import wording
from onnxpress.client import Client
from onnxpress.commands.options import AsJson, JobId, Keep, Timeout, Url, writable, write
from onnxpress.commands.recorded import (
    OnInconclusive,
    Reports,
    ServiceOutage,
    code_of_inconclusive,
    forms_wanted,
    recorded,
)
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import NotFoundError, UsageError
from onnxpress.interrupts import cancelled_on_interrupt
from onnxpress.live_progress import LiveProgress
from onnxpress.live_search import wait_for
from onnxpress.model_names import split_version
from onnxpress.pipeline import Pipeline
from onnxpress.render_report import STYLES, show
from onnxpress.report_formats import FORMS_HELP, form_of, report_text, report_texts
from onnxpress.run_record import RunRecord
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

SHA256 = re.compile("[0-9a-f]{64}")


def jobs(
    *,
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="Only those with this status.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="KEY=VALUE", help="Only those with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Only so many, the newest.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List jobs, newest first: a table on a terminal, bare ids in a pipe."""
    with session(url, as_json=as_json) as client:
        found = list(client.jobs.list(status=status, label=label, limit=limit))
        if as_json:
            give_json({"items": [dict(job.document) for job in found]})
        elif sys.stdout.isatty():
            people().print(job_table(found, _names(client, found)))
        else:
            for job in found:
                give(job.id)


def _names(client: Client, found: list[Job]) -> dict[str, str]:
    """Give what the jobs' networks are called; one that was deleted has its id alone."""
    names: dict[str, str] = {}
    for model in dict.fromkeys(str(job.document.get("model") or "") for job in found):
        with suppress(NotFoundError):
            names[model] = (client.models.get(model).name if model else "") or ""
    return names


def job_table(found: list[Job], names: Mapping[str, str]) -> Table:
    """Give jobs as a table; ids whole, for they are copied."""
    table = Table()
    for name in ("job", "model", "status", "verdict", "created", "labels"):
        table.add_column(name, no_wrap=name == "job")
    for job in found:
        labels = ", ".join(f"{key}={value}" for key, value in job.labels.items())
        verdict = safe_text(job.verdict, style=STYLES.get(job.verdict, ""))
        model = str(job.document.get("model") or "")
        table.add_row(
            job.id,
            safe_text(names.get(model, model)),
            safe_text(wording.status(job.document)),
            verdict,
            (job.created_at or "")[:19].replace("T", " "),
            safe_text(labels),
        )
    return table


def wait(
    job_id: JobId,
    *,
    report: Reports = None,
    on_inconclusive: OnInconclusive = "inconclusive",
    service_outage: ServiceOutage = "fail",
    timeout: Timeout = None,
    keep: Keep = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Stay until a job is finished; the exit code is its verdict, as for compress."""
    reports, pipeline = report or [], Pipeline.of()
    record = RunRecord("wait", job_id)
    with session(url, as_json=as_json) as client, recorded(record, reports, pipeline, service_outage=service_outage):
        record.url, undecided = client.url, code_of_inconclusive(on_inconclusive)
        with LiveProgress(people()) as live, cancelled_on_interrupt(client, lambda: job_id, keep=keep):
            record.job = job = wait_for(client, job_id, Deadline.after(timeout), live)
        if forms := forms_wanted(reports, pipeline):
            record.report = client.jobs.report(job.id)
            record.texts = report_texts(client, job.id, forms)
        code = record.judged(undecided)
        tell(f"job {job.id} {job.status}, verdict: {job.verdict}", STYLES.get(job.verdict, ""))
        if as_json:
            give_json({"job": job.document, "exit_code": int(code)})
        else:
            give(job.id)
        raise typer.Exit(code)


def cancel(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """End a job; what it has done so far is thrown away."""
    with session(url, as_json=as_json) as client:
        job = client.jobs.cancel(job_id)
        tell(f"job {job.id} is {job.status}")
        if as_json:
            give_json({"job": job.document, "exit_code": 0})
        else:
            give(job.id)


def retry(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Ask again, as a new job, for what a failed or cancelled one was to do; gives the new job's id."""
    with session(url, as_json=as_json) as client:
        job = client.jobs.retry(job_id)
        if as_json:
            give_json({"job": job.document, "exit_code": 0})
        else:
            give(job.id)


def logs(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job is finished.")] = False,
    url: Url = None,
) -> None:
    """Give what happened to a job, a line for each event."""
    with session(url) as client:
        if not follow:
            give(client.jobs.logs(job_id).rstrip("\n"))
            return
        for event in client.jobs.events(job_id):
            give(f"{event.data.get('at', '')} {event.type} {_told(event.data)}".rstrip())


def _told(data: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in data.items() if name not in {"at", "attempt"} and value is not None}
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


def report(
    job_id: JobId,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Give Markdown on stdout.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Write a file instead: {FORMS_HELP}."),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what a job measured, beside the original."""
    with session(url, as_json=as_json) as client:
        writable(out, "--out")
        if out:
            write(out, report_text(client, job_id, form_of(out)))
            tell(f"wrote {out}")
        elif as_json:
            give_json(client.jobs.report(job_id))
        elif markdown:
            give(client.jobs.report_markdown(job_id).rstrip("\n"))
        else:
            show(client.jobs.report(job_id), people(), title=job_id)


def download(
    what: Annotated[
        str,
        typer.Argument(
            metavar="JOB|MODEL|SHA256",
            help="A finished job, a model (or @ALIAS, NAME@VERSION), data, or an artifact's digest.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the file goes; it appears complete and checked or not at all.")
    ],
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Fetch a job's network, or any artifact by its sha256; the digest is checked."""
    with session(url, as_json=as_json) as client:
        writable(out, "--out")
        with LiveProgress(people()) as live, live.transfer(f"download {out.name}") as progress:
            if SHA256.fullmatch(what):
                client.artifacts.download(what, out, progress=progress)
            elif what.startswith(("mdl_", "@")) or split_version(what) is not None:
                client.models.download(what, out, progress=progress)
            elif what.startswith("dst_"):
                client.datasets.download(what, out, progress=progress)
            elif what.startswith("job_"):
                client.jobs.download(what, out, progress=progress)
            else:
                raise UsageError(
                    f"{what!r} is neither the id of a job, model or dataset, nor @ALIAS, nor NAME@VERSION, nor a sha256"
                )
        if as_json:
            give_json({"out": str(out), "exit_code": 0})
        else:
            give(str(out))
