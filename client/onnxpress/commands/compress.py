"""`onnxpress compress`: the whole way from a file to a smaller, measured and judged one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpress import gates, goal
from onnxpress import recipe as recipes
from onnxpress.client import Client
from onnxpress.commands.deliver import Delivery, deliver, fetch
from onnxpress.commands.incumbent import Replacement, compare, find_incumbent
from onnxpress.commands.incumbent import promote as promote_result
from onnxpress.commands.options import AsJson, Data, Judge, Keep, Metric, Timeout, Url, writable
from onnxpress.commands.recorded import (
    OnInconclusive,
    Reports,
    ServiceOutage,
    code_of_inconclusive,
    recorded,
)
from onnxpress.commands.submit import AllowedLoss, JobRequest, dry_run_submission, submit
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import UsageError
from onnxpress.loss_limit import KINDS, parse_outputs
from onnxpress.pipeline import Pipeline
from onnxpress.quantities import parse_loss
from onnxpress.run_record import RunRecord
from onnxpress.terminal import session, tell


def compress(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="ONNX file, or a stored model: its id, @ALIAS or NAME@VERSION.", show_default=False
        ),
    ],
    *,
    data: Data = None,
    goal_: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="WHAT|FILE",
            help=f"What the result is to have least of: {', '.join(goal.MINIMISED)}; or a JSON or YAML file with a goal or a whole job. The"
            " service finds the way there.",
            show_default="latency, without --recipe",
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Limit: what quality may lose, such as 1%: points of the labels' metric; without labels, of agreement with the original.",
            show_default="1% with --goal",
        ),
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(metavar="N", help="Limit: at least so many times as fast as the original, such as 3.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Limit: of the file, such as 100KB, 2MB, 2MiB or 25%.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Limit: of a process that loads and runs it, such as 200MB or 80%."),
    ] = None,
    max_p99: Annotated[
        str | None,
        typer.Option("--max-p99", metavar="TIME", help="Limit: 99 % of runs take at most this, such as 5ms."),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(goal.EFFORTS),
            help="How long to look for it: about 3, 10 or 30 minutes.",
            show_default="medium",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long exactly, such as 90s, 10m or 2h; goes before --effort.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many candidates at most; goes before --effort.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Who proposes candidates: {', '.join(goal.STRATEGIES)}.", show_default="auto"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The same seed gives the same candidates.", show_default="0")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Training may mirror images.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help=f"Instead of a goal: JSON or YAML file with a recipe or a whole job, or one of: {', '.join(recipes.NAMES)}.",
        ),
    ] = None,
    judge: Judge = None,
    metric: Metric = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Network of another architecture with the same inputs and outputs that the recipe works on: `distill` teaches it.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Network that `distill` learns from; by default the one that is compressed."
        ),
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="GATE", help=f"Repeatable, any limit: {gates.GATE_FORM}.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND",
            help=f"Repeatable: what an output of the network means: {', '.join(KINDS)}, state or ignore.",
        ),
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
    report: Reports = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What is in production, such as @prod: the result is measured beside it too, and has to hold --baseline-gate.",
        ),
    ] = None,
    baseline_gate: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline-gate",
            metavar="GATE",
            help="Repeatable: a limit beside --baseline, written as for --gate.",
            show_default="at most 1.05 times what the goal minimises, and --max-drop",
        ),
    ] = None,
    promote: Annotated[
        str | None,
        typer.Option(metavar="ALIAS", help="Have this alias name the result, if every gate holds; else it stays."),
    ] = None,
    on_inconclusive: OnInconclusive = "inconclusive",
    service_outage: ServiceOutage = "fail",
    priority: Annotated[int | None, typer.Option(metavar="N", help="The higher, the sooner among your jobs.")] = None,
    cache: Annotated[bool, typer.Option(help="Let an earlier result of the same work answer.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload and check, but do not submit.")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until the result is there.")] = True,
    timeout: Timeout = None,
    keep: Keep = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Compress a network: say what you need, and the service finds the way; the exit code is the verdict.

    With --goal (or nothing) the result has the least latency, size, memory or multiplications that the limits allow; `onnxpress
    front` shows what else there is to choose from, `onnxpress pick` makes it. With --recipe the passes are applied as they stand.

    Hashes and uploads, submits, shows progress, prints what was measured beside the original, downloads with the digest
    checked. stdout holds the job's id, or one JSON document with --json. Exit codes: 0 ok, 2 usage or job invalid, 3 a
    gate failed, 4 the job failed, 5 service error, 6 timeout, 7 inconclusive, 130 interrupted (the remote job is
    cancelled). The network is downloaded whatever the gates say: trust the exit code.

    In a pipeline: --baseline @prod compares with what is in production, --promote prod replaces it on a pass, and each --report
    is written whatever the end is. GitHub's outputs, step summary and annotations are filled by themselves; the same step run
    again finds its job.
    """
    reports, pipeline = report or [], Pipeline.of()
    record = RunRecord("compress", model)
    with session(url, as_json=as_json) as client, recorded(record, reports, pipeline, service_outage=service_outage):
        record.url = client.url
        record.labels = labels = {**pipeline.labels, **recipes.parse_labels(label or [])}
        writable(out, "--out")
        if not wait and (out or reports):
            raise UsageError(
                "--no-wait ends before there is a result for --out or --report; use `onnxpress download` later"
            )
        delivery = Delivery(
            out, reports, Deadline.after(timeout), pipeline, as_json, code_of_inconclusive(on_inconclusive)
        )
        search = {
            "effort": effort,
            "budget": budget,
            "trials": trials,
            "strategy": strategy,
            "seed": seed,
            "flip": flip,
        }
        spec = _asked_for(goal_, recipe, search)
        if spec["kind"] == "search" and (student or teacher):
            raise UsageError("--student and --teacher are for a recipe that teaches; a goal is about one network alone")
        limits = [
            *map(gates.parse_gate, gate or []),
            *gates.cost_limits(min_speedup=min_speedup, max_size=max_size, max_memory=max_memory, max_p99=max_p99),
        ]
        spec = goal.with_limits(spec, limits)
        named = {"provider": provider, "threads": threads, "batch": batch}
        wanted = {**(recipes.parse_target(target) if target else {}), **_told(named)}
        spec = _with_values(spec, target=wanted, labels=labels, outputs=parse_outputs(output or []))
        spec |= {"tune": spec.get("tune") or {}} if tune else {}
        spec |= {} if priority is None else {"priority": priority}
        spec |= {} if cache else {"cache": "refuse"}
        loss = _allowed_loss(max_drop, spec, has_data=data is not None)
        replacement = Replacement(baseline, [gates.parse_gate(one) for one in baseline_gate or []], _alias(promote))
        replacement.check(has_gates=bool(loss or goal.limits_of(spec)), wait=wait or dry_run)
        request = JobRequest(spec, model, data, metric, judge=judge, student=student, teacher=teacher, loss=loss)
        if dry_run:
            dry_run_submission(client, request, delivery.deadline, as_json=as_json)
            return
        _run(client, record, request, replacement, delivery, wait=wait, keep=keep)


def _run(
    client: Client,
    record: RunRecord,
    request: JobRequest,
    replacement: Replacement,
    delivery: Delivery,
    *,
    wait: bool,
    keep: bool,
) -> None:
    """Have the job done, judge its result beside the original and beside what it is to replace, and replace that."""

    def take(job: Job) -> None:
        record.job = job

    as_json, deadline = delivery.as_json, delivery.deadline
    incumbent = find_incumbent(client, replacement, record, deadline)
    job = submit(client, request, deadline, wait=wait, keep=keep, as_json=as_json, on_job=take)
    if job is None:
        return
    take(job)
    # Whoever failed beside the original need not be compared any further.
    if incumbent is not None and job.verdict != "fail":
        drop = request.loss.drop if request.loss else None
        record.comparison = compare(
            client, job, incumbent, replacement, deadline, drop=drop, keep=keep, as_json=as_json
        )
    fetch(client, record, delivery)
    if replacement.promote is not None:
        if record.verdict == "pass":
            promote_result(client, record, replacement.promote, incumbent)
        else:
            record.notes.append(f"@{replacement.promote} stays as it is: the verdict is {record.verdict}.")
            tell(record.notes[-1], "yellow")
    deliver(record, delivery)


def _alias(text: str | None) -> str | None:
    return None if text is None else text.removeprefix("@")


def _asked_for(wanted: str | None, recipe: str | None, search: dict[str, Any]) -> dict[str, Any]:
    """Give the spec of a search for a goal, or of a recipe; without either the goal is speed. Raises UsageError for both."""
    if wanted is not None and recipe is not None:
        raise UsageError("give --goal or --recipe, not both: a goal says what is needed and finds the recipe itself")
    spec = goal.read_goal(wanted or "latency") if recipe is None else recipes.read_spec(recipe)
    if spec["kind"] == "search":
        return goal.with_options(spec, goal.search_options(**search))
    typed = [f"--{name}" for name, value in search.items() if value not in (None, False)]
    if typed:
        raise UsageError(
            f"{', '.join(typed)}: how to search is for a goal, but --recipe says what to do; leave one out"
        )
    return spec


def _with_values(spec: dict[str, Any], **values: dict[str, Any]) -> dict[str, Any]:
    """Let what was typed add to a spec, and win where both say something."""
    return spec | {name: {**spec.get(name, {}), **value} for name, value in values.items() if value}


def _allowed_loss(max_drop: str | None, spec: dict[str, Any], *, has_data: bool) -> AllowedLoss | None:
    """Give what quality may lose: what was said, else for a goal without any limit on quality the usual point."""
    if max_drop is not None:
        return AllowedLoss(parse_loss(max_drop, f"--max-drop {max_drop}"), asked=True)
    says = any(gate["metric"].partition("@")[0] not in gates.COSTS for gate in goal.limits_of(spec))
    return AllowedLoss(0.01, asked=False) if spec["kind"] == "search" and has_data and not says else None


def _told(named: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in named.items() if value is not None}
