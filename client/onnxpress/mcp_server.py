"""A Model Context Protocol server over the SDK: an agent reads what is stored, submits, waits and reports.

The address and the key come from the environment, as for the command line. Files are read and written with the rights of whoever
started it; nothing is deleted, and no alias is moved.
"""

import importlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from onnxpress.client import Client
from onnxpress.documents import Job
from onnxpress.errors import OnnxpressError, UsageError, WaitTimeoutError
from onnxpress.gates import cost_limits, parse_gate
from onnxpress.goal import MINIMISED
from onnxpress.loss_limit import loss_limit
from onnxpress.model_names import is_id, is_stored_model
from onnxpress.quantities import parse_loss

# An agent's host gives up on a tool that stays silent for longer.
LONGEST_WAIT_S = 50.0
_MOST = 50
INSTRUCTIONS = """\
Compress ONNX networks on the user's own onnxpress service and report what was measured beside the original.

Usual order: `compress` with a file or id, data and a goal; `wait` until the job is finished (call it again while it is not); `report`;
then `download`, or `card` for how to load the result. The verdict is pass, fail, inconclusive or none; tell the user that and the figures
with their intervals, never a speed-up alone. A step that is refused is an answer, not an error. Ask before you loosen a limit.
"""


def serve() -> None:
    """Serve on standard input and output until they are closed; raises UsageError without the package `mcp`."""
    _server().run("stdio")


def _server() -> Any:
    try:
        mcp: Any = importlib.import_module("mcp.server")
        exceptions: Any = importlib.import_module("mcp.server.mcpserver.exceptions")
    except ImportError:
        raise UsageError("the MCP server takes the package mcp: pip install 'onnxpress[mcp]'") from None
    server = mcp.MCPServer("onnxpress", instructions=INSTRUCTIONS)
    for tool in (list_models, list_jobs, list_recipes, list_targets, compress, wait, report, card, download, cancel):
        server.add_tool(_told(tool, exceptions.ToolError), name=tool.__name__, description=tool.__doc__)
    return server


def _told(tool: Callable[..., Any], failed: type[Exception]) -> Callable[..., Any]:
    """Have what the service refuses reach the agent in the service's own words."""

    def call(**arguments: Any) -> Any:
        try:
            with Client() as client:
                return tool(client, **arguments)
        except OnnxpressError as error:
            raise failed(str(error)) from error

    call.__name__, call.__doc__ = tool.__name__, tool.__doc__
    call.__annotations__ = {name: kind for name, kind in tool.__annotations__.items() if name != "client"}
    inspect: Any = importlib.import_module("inspect")
    signature = inspect.signature(tool)
    kept = [each for each in signature.parameters.values() if each.name != "client"]
    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]  # what the server makes its schema of
    return call


def list_models(client: Client, tag: str | None = None) -> list[dict[str, Any]]:
    """List stored networks, the newest first: id, name, version, state, size, aliases, tags, and the job that made it.

    Wherever a network is named, `@ALIAS` or `NAME@VERSION` may stand for the id.
    """
    found = client.models.list(tags=[tag] if tag else (), limit=_MOST)
    names = ("id", "name", "version", "state", "size_bytes", "aliases", "tags", "parent", "job")
    return [{name: model.document.get(name) for name in names} for model in found]


def list_jobs(client: Client, status: str | None = None, label: str | None = None) -> list[dict[str, Any]]:
    """List jobs, the newest first; `status` is queued, running, succeeded, failed or cancelled, `label` KEY=VALUE."""
    return [_of_job(job) for job in islice(client.jobs.list(status=status, label=label), _MOST)]


def list_recipes(client: Client, model: str | None = None) -> list[dict[str, Any]]:
    """List the recipes that a job may ask for by name, for a stored model's id with what each would take and leave out."""
    return client.recipes(model=model)


def list_targets(client: Client) -> list[dict[str, Any]]:
    """List the hardware that workers can measure on now."""
    return client.targets()


def compress(  # noqa: PLR0917 - what an agent may say of a job
    client: Client,
    model: str,
    data: str | None = None,
    goal: str = "latency",
    recipe: str | None = None,
    max_drop: str = "1%",
    min_speedup: str | None = None,
    max_size: str | None = None,
    gates: list[str] | None = None,
    effort: str = "low",
    metric: str | None = None,
) -> dict[str, Any]:
    """Submit a compression and give the job at once; `wait` for it then.

    `model` and `data` are files on this machine or ids; a model also @ALIAS or NAME@VERSION. With `goal` (latency, size, memory, macs) the service searches under the limits;
    with `recipe` (small, fast, fastest, simplify...) it applies that. `max_drop` is what quality may lose, `max_size` such as 2MB or 25%,
    `min_speedup` such as 3, `gates` any other limit such as 'top1 max_drop 0.01'. `effort` is low (3 min), medium (10) or high (30).
    """
    if goal not in MINIMISED:
        raise UsageError(f"goal {goal!r} is not known; it is one of {', '.join(MINIMISED)}")
    stored = client.models.get(model) if is_stored_model(model) else client.models.upload(model)
    dataset = None
    if data is not None:
        dataset = client.datasets.get(data) if is_id(data, "dst_") else client.datasets.upload(data, metric=metric)
    limits = [parse_gate(gate) for gate in gates or ()] + cost_limits(min_speedup=min_speedup, max_size=max_size)
    if dataset is not None:
        limits.append(loss_limit(parse_loss(max_drop, f"max_drop {max_drop}"), stored, dataset, {}).gate)
    spec: dict[str, Any] = {"model": stored.id, "labels": {"by": "mcp"}}
    spec |= {"dataset": dataset.id} if dataset is not None else {}
    if recipe is not None:
        named = {"passes": [{"type": recipe}]} if recipe in {each["type"] for each in client.passes()} else recipe
        spec |= {"kind": "compress", "recipe": named, "gates": limits}
    else:
        spec |= {"kind": "search", "goal": {"minimise": goal, "effort": effort, "subject_to": limits}}
    return _of_job(client.jobs.submit(spec))


def wait(client: Client, job: str, seconds: float = 30.0) -> dict[str, Any]:
    """Wait at most 50 seconds for a job's end, and give it as it stands; call it again while `finished` is false."""
    found = client.jobs.get(job)
    try:
        for found in client.jobs.updates(job, timeout=min(max(seconds, 1.0), LONGEST_WAIT_S)):  # noqa: B007 - the last one counts
            pass
    except WaitTimeoutError:
        pass
    return _of_job(found)


def report(client: Client, job: str) -> str:
    """Give a finished job's report as Markdown: figures beside the original with intervals, gates, steps and refusals."""
    return client.jobs.report_markdown(job)


def card(client: Client, model: str) -> str:
    """Give a stored network's card (or a job's result): what was measured, what it was made from, lines that load it."""
    return client.exports.card(_result(client, model))


def download(client: Client, model: str, path: str, folder: bool = False) -> str:
    """Write a network (or a job's result) to a new file, or with `folder` as a signed folder with card and bill of materials."""
    target = Path(path)
    if target.exists():
        raise UsageError(f"{target} is there already; name a new one")
    model_id = _result(client, model)
    return str(client.exports.folder(model_id, target) if folder else client.models.download(model_id, target))


def cancel(client: Client, job: str) -> dict[str, Any]:
    """Cancel a job that has not ended."""
    return _of_job(client.jobs.cancel(job))


def _result(client: Client, named: str) -> str:
    if not named.startswith("job_"):
        return named
    output = client.jobs.get(named).output_model
    if output is None:
        raise UsageError(f"job {named} has made no network")
    return output


def _of_job(job: Job) -> dict[str, Any]:
    """Give what an agent needs of a job."""
    names = ("id", "kind", "status", "verdict", "queue", "progress", "output_model", "problem", "warnings", "summary")
    told = {name: job.document.get(name) for name in names}
    summary = told.pop("summary") or {}
    return {**told, "finished": job.finished, "summary": summary.get("text"), "gates": summary.get("gates")}
