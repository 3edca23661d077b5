"""The end of a job that made a network: what it made is fetched, shown, and judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer

from onnxpress import genai_folder, render_report
from onnxpress.client import Client
from onnxpress.commands.recorded import forms_wanted
from onnxpress.deadline import Deadline
from onnxpress.errors import about_job
from onnxpress.exit_codes import ExitCode
from onnxpress.live_progress import LiveProgress
from onnxpress.pipeline import Pipeline
from onnxpress.report_formats import report_texts
from onnxpress.run_record import RunRecord
from onnxpress.terminal import give_json, people, tell


@dataclass(frozen=True)
class Delivery:
    """Where a result goes, and what an undecided verdict means."""

    out: Path | None
    reports: Sequence[Path]
    deadline: Deadline
    pipeline: Pipeline
    as_json: bool
    on_inconclusive: ExitCode = ExitCode.INCONCLUSIVE


def fetch(client: Client, record: RunRecord, delivery: Delivery) -> None:
    """Fetch what is to be known of the record's job, and the network."""
    job = record.job
    assert job is not None
    with about_job(job.id):
        forms = forms_wanted(delivery.reports, delivery.pipeline)
        record.report = client.jobs.report(job.id)
        record.texts = report_texts(client, job.id, forms - ({"html"} if record.comparison is not None else set()))
        if record.comparison is not None:
            # The others hold what was measured of one network alone.
            record.texts_beside = report_texts(client, record.comparison.job.id, forms & {"md", "junit.xml"})
            if "html" in forms:
                record.texts["html"] = client.jobs.report_page(job.id, beside=record.comparison.job.id)
        if delivery.out:
            with LiveProgress(people()) as live, live.transfer(f"download {delivery.out.name}") as progress:
                client.jobs.download(job.id, delivery.out, progress=progress, timeout=delivery.deadline.remaining())


def deliver(record: RunRecord, delivery: Delivery) -> NoReturn:
    """Show the result and end with the verdict's exit code."""
    job, report, out = record.job, record.report, delivery.out
    assert job is not None
    assert report is not None
    render_report.show(
        report, people(), title=f"{Path(record.subject).name} -> {out.name if out else job.output_model}"
    )
    if record.comparison is not None:
        beside = record.comparison
        render_report.show(beside.report, people(), title=f"{job.output_model} beside {beside.named}")
    if (report.get("search") or {}).get("front"):
        tell(f"another point of the front: onnxpress pick {job.id} NUMBER --out FILE", "dim")
    if out:
        tell(f"{out}: sha256 {report['compressed']['sha256']}")
        model = Path(record.subject)
        beside_it = genai_folder.complete(model, out) if model.is_file() else []
        if beside_it:
            tell(f"{out.parent}: {', '.join(beside_it)} for onnxruntime-genai, as they lie beside {model.name}")
    code = record.judged(delivery.on_inconclusive)
    if delivery.as_json:
        document = {"job": job.document, "report": report, "out": str(out) if out else None, "exit_code": int(code)}
        give_json(document | {"run": record.document()})
    raise typer.Exit(code)
