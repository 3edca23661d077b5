"""`onnxpress profile`: what a network costs on each target, judged by budgets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpress import gates, render_report
from onnxpress import recipe as recipes
from onnxpress.commands.options import AsJson, Data, Judge, Keep, Metric, Timeout, Url
from onnxpress.commands.recorded import (
    OnInconclusive,
    Reports,
    ServiceOutage,
    code_of_inconclusive,
    forms_wanted,
    recorded,
)
from onnxpress.commands.submit import JobRequest, dry_run_submission, submit
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import UsageError
from onnxpress.pipeline import Pipeline
from onnxpress.report_formats import report_texts
from onnxpress.run_record import RunRecord
from onnxpress.terminal import give_json, people, session


def profile(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="ONNX file, or a stored model: its id, @ALIAS or NAME@VERSION.", show_default=False
        ),
    ],
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="TARGET", help=f"Repeatable: {recipes.TARGET_FORM}.", show_default="one thread of cpu"
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="ONNX file, or a stored model: its id, @ALIAS or NAME@VERSION, to compare with."
        ),
    ] = None,
    data: Data = None,
    judge: Judge = None,
    metric: Metric = None,
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="GATE", help=f"Repeatable: {gates.GATE_FORM}.")
    ] = None,
    max_p99: Annotated[
        str | None, typer.Option("--max-p99", metavar="TIME", help="Gate: 99 % of runs take at most this, such as 5ms.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Look for better session options on each target.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="How long latency is measured on each target.")
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option("--spec", metavar="FILE", help="JSON or YAML file of a whole job; other options add to it."),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable: mark the job.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where a report goes, as --report.")] = None,
    report: Reports = None,
    on_inconclusive: OnInconclusive = "inconclusive",
    service_outage: ServiceOutage = "fail",
    priority: Annotated[int | None, typer.Option(metavar="N", help="The higher, the sooner among your jobs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload and check, but do not submit.")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until the result is there.")] = True,
    timeout: Timeout = None,
    keep: Keep = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Measure a network on each target; the exit code is the verdict.

    Percentiles of latency, throughput with several callers, load times, peak memory, where the time goes and which provider
    runs each node; beside a baseline, run by run in turn. stdout holds the job's id, or one JSON document with --json. Exit
    codes as of `compress`.
    """
    reports, pipeline = [*(report or []), *([out] if out else [])], Pipeline.of()
    record = RunRecord("profile", model)
    with session(url, as_json=as_json) as client, recorded(record, reports, pipeline, service_outage=service_outage):
        record.url = client.url
        record.labels = labels = {**pipeline.labels, **recipes.parse_labels(label or [])}
        if not wait and reports:
            raise UsageError("--no-wait ends before there is a report; use `onnxpress report` later")
        undecided = code_of_inconclusive(on_inconclusive)
        asked: dict[str, Any] = recipes.read_profile(spec) if spec else {"kind": "profile"}
        targets = [*asked.get("targets", ()), *map(recipes.parse_target, target or ())]
        asked["targets"] = targets or [{"provider": "cpu"}]
        _add_gates(asked, gate or [], max_p99)
        if tune:
            asked.setdefault("tune", {})
        if labels:
            asked["labels"] = {**asked.get("labels", {}), **labels}
        asked |= {} if priority is None else {"priority": priority}
        asked |= {} if seconds is None else {"measure_seconds": seconds}
        request, deadline = JobRequest(asked, model, data, metric, baseline, judge), Deadline.after(timeout)
        if dry_run:
            dry_run_submission(client, request, deadline, as_json=as_json)
            return

        def take(job: Job) -> None:
            record.job = job

        job = submit(client, request, deadline, wait=wait, keep=keep, as_json=as_json, on_job=take)
        if job is None:
            return
        record.job, record.report = job, client.jobs.report(job.id)
        record.texts = report_texts(client, job.id, forms_wanted(reports, pipeline))
        render_report.show(record.report, people(), title=Path(model).name)
        code = record.judged(undecided)
        if as_json:
            path = str(out) if out else None
            give_json({"job": job.document, "report": record.report, "out": path, "exit_code": int(code)})
        raise typer.Exit(code)


def _add_gates(asked: dict[str, Any], typed: list[str], max_p99: str | None) -> None:
    told = [*map(gates.parse_gate, typed), *gates.cost_limits(max_p99=max_p99)]
    if told:
        asked["gates"] = [*asked.get("gates", ()), *told]
