"""`onnxpress compress`: the whole way from a file to a smaller, measured and judged one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpress import genai_folder, render_report
from onnxpress import recipe as recipes
from onnxpress.client import Client
from onnxpress.commands.options import AsJson, Data, Judge, Keep, Metric, Timeout, Url, writable, write
from onnxpress.commands.submit import JobRequest, dry_run_submission, submit
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import UsageError
from onnxpress.exit_codes import code_of_verdict
from onnxpress.live_progress import LiveProgress
from onnxpress.report_formats import report_text
from onnxpress.terminal import give_json, people, session, tell


def compress(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="ONNX file, or the id of a stored model.", show_default=False)
    ],
    *,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help=f"JSON file with a recipe or a whole job, or one of: {', '.join(recipes.NAMES)}.",
        ),
    ],
    data: Data = None,
    judge: Judge = None,
    metric: Metric = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ID",
            help="Network of another architecture with the same inputs and outputs that the recipe works on: `distill` teaches it.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Network that `distill` learns from; by default MODEL."),
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="GATE", help=f"Repeatable: {recipes.GATE_FORM}.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help=f"What the result is for: {recipes.TARGET_FORM}.")
    ] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Execution provider of the target.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of the target.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Batch size of the target.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure each network with the session options that it runs best with.")
    ] = False,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable: mark the job.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the compressed network goes.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the report goes: .json, .xml (JUnit), .prom (Prometheus), else Markdown."
        ),
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
        named = {"provider": provider, "threads": threads, "batch": batch}
        wanted = {**(recipes.parse_target(target) if target else {}), **_told(named)}
        spec = _spec(recipe, gate or [], wanted, recipes.parse_labels(label or []))
        spec |= {"tune": spec.get("tune") or {}} if tune else {}
        spec |= {} if priority is None else {"priority": priority}
        spec |= {} if cache else {"cache": "refuse"}
        request = JobRequest(spec, model, data, metric, judge=judge, student=student, teacher=teacher)
        deadline = Deadline.after(timeout)
        if dry_run:
            dry_run_submission(client, request, deadline, as_json=as_json)
            return
        job = submit(client, request, deadline, wait=wait, keep=keep, as_json=as_json)
        if job is not None:
            _deliver(client, job, model, out, report, deadline, as_json=as_json)


def _spec(recipe: str, gates: list[str], target: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    """Read the recipe and let the options add to it, and win where both say something."""
    spec = recipes.read_spec(recipe)
    if target:
        spec["target"] = {**spec.get("target", {}), **target}
    if gates:
        spec["gates"] = [*spec.get("gates", ()), *map(recipes.parse_gate, gates)]
    if labels:
        spec["labels"] = {**spec.get("labels", {}), **labels}
    return spec


def _told(named: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in named.items() if value is not None}


def _deliver(  # noqa: PLR0917 - one private call
    client: Client,
    job: Job,
    model: str,
    out: Path | None,
    report_file: Path | None,
    deadline: Deadline,
    *,
    as_json: bool,
) -> None:
    """Fetch the report and the network, show the result and end with the verdict's exit code."""
    report = client.jobs.report(job.id)
    if report_file:
        write(report_file, report_text(client, job.id, report_file))
    if out:
        with LiveProgress(people()) as live, live.transfer(f"download {out.name}") as progress:
            client.jobs.download(job.id, out, progress=progress, timeout=deadline.remaining())
    title = f"{Path(model).name} -> {out.name if out else job.output_model}"
    render_report.show(report, people(), title=title)
    if out:
        tell(f"{out}: sha256 {report['compressed']['sha256']}")
        beside = genai_folder.complete(Path(model), out) if Path(model).is_file() else []
        if beside:
            tell(f"{out.parent}: {', '.join(beside)} for onnxruntime-genai, as they lie beside {Path(model).name}")
    code = code_of_verdict(job.verdict)
    if as_json:
        give_json({"job": job.document, "report": report, "out": str(out) if out else None, "exit_code": int(code)})
    raise typer.Exit(code)
