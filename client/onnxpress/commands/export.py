"""Commands for networks that leave the service: their card, and folders and registries that others read."""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from onnxpress.client import Client
from onnxpress.commands.options import AsJson, Timeout, Url, writable
from onnxpress.deadline import Deadline
from onnxpress.documents import Outcome
from onnxpress.errors import ConflictError, UsageError
from onnxpress.exit_codes import ExitCode, code_of_verdict
from onnxpress.exports import LAYOUTS, Layout
from onnxpress.live_progress import LiveProgress
from onnxpress.mlflow_registry import register
from onnxpress.model_names import split_version
from onnxpress.oci_registry import Reference, Registry
from onnxpress.ort_format import write_ort_format
from onnxpress.problem import Problem
from onnxpress.terminal import give, give_json, people, session, tell

_FORMS = (*LAYOUTS, "ort")
_MLFLOW, _OCI = "mlflow://", "oci://"
Stored = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Id of a stored model, @ALIAS or NAME@VERSION, or a finished job, whose result it is.",
        show_default=False,
    ),
]


def card(
    model: Stored,
    *,
    bom: Annotated[bool, typer.Option("--bom", help="Give the bill of materials (CycloneDX) instead.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Give only the Python that loads it.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what a stored network is: what was measured, what it was made from, and how to load it, as Markdown.

    With --json: how to load it, for programs.
    """
    with session(url, as_json=as_json) as client:
        model_id = _model_id(client, model)
        if bom:
            give(json.dumps(client.exports.bill_of_materials(model_id), indent=1, ensure_ascii=False))
        elif load and not as_json:
            give(client.exports.loading(model_id)["usage"].rstrip())
        elif as_json:
            give_json({"model": model_id, "loading": client.exports.loading(model_id), "exit_code": 0})
        else:
            give(client.exports.card(model_id).rstrip("\n"))


def export(
    model: Stored,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|oci://...|mlflow://NAME",
            help="A new folder; a place in an OCI registry (oci://HOST/REPOSITORY:TAG); a model of MLflow's registry; a file, with --as ort.",
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="|".join(_FORMS),
            help="`hub`: README.md and onnx/model_int8.onnx, as model hubs name them; `triton`: a model repository; `ort`: one file in ONNX"
            " Runtime's own format, written by the onnxruntime that is installed here.",
        ),
    ] = "hub",
    original: Annotated[bool, typer.Option("--original", help="hub: put the original beside it.")] = False,
    max_batch: Annotated[
        int, typer.Option(min=0, metavar="N", help="triton: gather requests into batches of at most so many.")
    ] = 0,
    alias: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="mlflow: have this alias name the new version, if every gate of its job held."
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", metavar="URL", help="mlflow: the server.", envvar="MLFLOW_TRACKING_URI"),
    ] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Take a network along: with its card, bill of materials, report and signature, as others read it.

    Everything is checked by digest on the way. Exit code 3 or 7 where an alias was asked for and the gates did not allow it.
    """
    with session(url, as_json=as_json) as client:
        _check(form, to, alias)
        deadline = Deadline.after(timeout)
        model_id = _model_id(client, model)
        done: dict[str, Any] = {"model": model_id, "to": to}
        code = ExitCode.OK
        if to.startswith((_OCI, _MLFLOW)) or form == "ort":
            with tempfile.TemporaryDirectory(prefix="onnxpress-") as scratch:
                folder = Path(scratch) / "export"
                _fetch(
                    client,
                    model_id,
                    folder,
                    form="hub" if form == "ort" else form,
                    deadline=deadline,
                    original=original,
                    max_batch=max_batch,
                )
                if form == "ort":
                    write_ort_format(_network(folder), Path(to))
                elif to.startswith(_OCI):
                    done |= _to_oci(client, model_id, folder, to)
                else:
                    done |= _to_mlflow(client, model_id, folder, to.removeprefix(_MLFLOW), tracking_uri, alias)
                    code = _of_alias(client, model_id, asked=alias, given=done["alias"])
        else:
            _fetch(client, model_id, Path(to), form=form, deadline=deadline, original=original, max_batch=max_batch)
        if as_json:
            give_json({**done, "exit_code": int(code)})
        else:
            give(to)
        raise typer.Exit(code)


def _check(form: str, to: str, alias: str | None) -> None:
    if form not in _FORMS:
        raise UsageError(f"--as {form}: it is one of {', '.join(_FORMS)}")
    if to.startswith(_OCI):
        Reference.parse(to)
    if (to.startswith((_OCI, _MLFLOW)) and form == "ort") or (to.startswith(_MLFLOW) and form != "hub"):
        raise UsageError(f"--to {to} takes --as hub{' or triton' if to.startswith(_OCI) else ''}")
    if alias is not None and not to.startswith(_MLFLOW):
        raise UsageError("--alias is MLflow's; aliases of this service are set by `onnxpress push --alias`")
    if form == "ort":
        writable(Path(to), "--to")


def _model_id(client: Client, named: str) -> str:
    """Give the id of the model that is meant: by its id, an alias, a version, or as a job's result."""
    if named.startswith("job_"):
        output = client.jobs.get(named).output_model
        if output is None:
            raise ConflictError(Problem(f"job {named} has made no network", code="no_model"))
        return output
    if named.startswith("mdl_"):
        return named
    if named.startswith("@") or split_version(named) is not None:
        return client.models.get(named).id
    raise UsageError(
        f"{named!r} is neither the id of a model or job nor @ALIAS nor NAME@VERSION; `onnxpress push` stores a file"
    )


def _fetch(
    client: Client, model_id: str, folder: Path, *, form: str, deadline: Deadline, original: bool, max_batch: int
) -> None:
    layout: Layout = next(each for each in get_args(Layout) if each == form)
    with LiveProgress(people()) as live, live.transfer(f"export {folder.name}") as progress:
        client.exports.folder(
            model_id,
            folder,
            layout=layout,
            original=original,
            max_batch=max_batch,
            progress=progress,
            timeout=deadline.remaining(),
        )


def _network(folder: Path) -> Path:
    """Give the network of a hub folder: not the original beside it."""
    found = sorted((folder / "onnx").glob("model*.onnx"), key=lambda path: (path.name == "model.onnx", path.name))
    return found[0]


def _to_oci(client: Client, model_id: str, folder: Path, to: str) -> dict[str, Any]:
    model = client.models.get(model_id)
    annotations = {
        "org.opencontainers.image.title": model.name or model_id,
        "org.opencontainers.image.created": str(model.document["created_at"]),
        "onnxpress.model": model_id,
    }
    with Registry(Reference.parse(to)) as registry:
        digest = registry.push(folder, annotations)
    tell(f"pushed {to}@{digest}")
    return {"digest": digest}


def _to_mlflow(  # noqa: PLR0917 - what, whereto
    client: Client, model_id: str, folder: Path, name: str, tracking_uri: str | None, alias: str | None
) -> dict[str, Any]:
    report = _report(client, model_id)
    found = register(folder, name, report, tracking_uri=tracking_uri, alias=alias)
    tell(f"registered {found.name} version {found.version}" + (f" as @{found.alias}" if found.alias else ""))
    return {"version": found.version, "run": found.run_id, "alias": found.alias}


def _report(client: Client, model_id: str) -> dict[str, Any] | None:
    job = client.models.get(model_id).document.get("job")
    return dict(client.jobs.report(job)) if job else None


def _of_alias(client: Client, model_id: str, *, asked: str | None, given: str | None) -> ExitCode:
    """Say why an alias was not set, if it was not."""
    if asked is None or given is not None:
        return ExitCode.OK
    report = _report(client, model_id)
    outcome: Outcome = report["verdict"]["outcome"] if report else "none"
    tell(f"@{asked} stays where it is: the verdict of the job that made the network is {outcome}, not pass", "yellow")
    return ExitCode.GATE_FAILED if outcome == "none" else code_of_verdict(outcome)
