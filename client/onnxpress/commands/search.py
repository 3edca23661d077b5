"""Commands about a search: front, pick, trials, pause, resume."""

from pathlib import Path
from typing import Annotated

import typer

from onnxpress.commands.deliver import Delivery, deliver, fetch
from onnxpress.commands.options import AsJson, JobId, Keep, Timeout, Url, writable
from onnxpress.commands.recorded import Reports, recorded
from onnxpress.deadline import Deadline
from onnxpress.gates import GATE_FORM, parse_gate
from onnxpress.idempotency import idempotency_key
from onnxpress.interrupts import cancelled_on_interrupt
from onnxpress.live_progress import LiveProgress
from onnxpress.live_search import wait_for
from onnxpress.pipeline import Pipeline
from onnxpress.render_search import front_table, trials_table
from onnxpress.run_record import RunRecord
from onnxpress.terminal import give, give_json, people, session, tell


def front(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Show what there is to choose from of a search: candidates that no other one beats in everything.

    While the search goes on, those so far. stdout holds their numbers, or one JSON document with --json; `pick` takes a number.
    """
    with session(url, as_json=as_json) as client:
        found = client.jobs.front(job_id)
        if as_json:
            give_json(found.document)
            return
        people().print(front_table(found))
        if not found.points:
            tell("nothing has been measured yet" if not found.final else "no candidate was measured")
        for point in found.points:
            give(str(point.number))


def trials(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Show what a search has tried, tries and is about to try, and what came of it.

    stdout holds one JSON document with --json.
    """
    with session(url, as_json=as_json) as client:
        found = list(client.jobs.trials(job_id))
        if as_json:
            give_json({"items": [dict(trial.document) for trial in found]})
        else:
            people().print(trials_table(found))


def pick(
    job_id: JobId,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Of a point that `front` shows.")],
    *,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="GATE", help=f"Repeatable, instead of the goal's limits: {GATE_FORM}."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the network goes.")] = None,
    report: Reports = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is measured; --out and --report do too.")] = False,
    timeout: Timeout = None,
    keep: Keep = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make another point of a search's front real, as a new job, without searching again.

    It is measured beside the original on the samples that judge, which no candidate has seen. stdout holds the job's id, or one
    JSON document with --json. Exit codes as of `compress`.
    """
    reports, pipeline = report or [], Pipeline.of()
    record = RunRecord("pick", f"point {number} of {job_id}", labels=pipeline.labels)
    with session(url, as_json=as_json) as client, recorded(record, reports, pipeline):
        record.url = client.url
        writable(out, "--out")
        gates = None if gate is None else list(map(parse_gate, gate))
        deadline = Deadline.after(timeout)
        key = idempotency_key("pick", job_id, number, gates)
        stays = bool(wait or out or reports)
        with LiveProgress(people()) as live:
            sent: list[str] = []
            with cancelled_on_interrupt(client, lambda: sent[0] if sent else None, keep=keep):
                job = client.jobs.pick(job_id, number, gates=gates, idempotency_key=key)
                sent.append(job.id)
                record.job = job
                if not as_json:
                    give(job.id)
                live.say(f"submitted {job.id}: point {number} of {job_id}")
                if stays:
                    job = wait_for(client, job.id, deadline, live)
        if not stays:
            if as_json:
                give_json({"job": job.document, "exit_code": 0})
            return
        record.job = job
        delivery = Delivery(out, reports, deadline, pipeline, as_json)
        fetch(client, record, delivery)
        deliver(record, delivery)


def pause(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Let a search rest: what runs of it ends, nothing more begins, and the time does not count against its budget."""
    with session(url, as_json=as_json) as client:
        job = client.jobs.pause(job_id)
        tell(f"job {job.id} is paused; go on with: onnxpress resume {job.id}")
        if as_json:
            give_json({"job": job.document, "exit_code": 0})
        else:
            give(job.id)


def resume(job_id: JobId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Let a paused search go on where it was."""
    with session(url, as_json=as_json) as client:
        job = client.jobs.resume(job_id)
        tell(f"job {job.id} goes on")
        if as_json:
            give_json({"job": job.document, "exit_code": 0})
        else:
            give(job.id)
