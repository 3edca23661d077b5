"""The command that makes a link: one file for whoever has it."""

import re
from typing import Annotated

import typer

from onnxpress.client import Client
from onnxpress.commands.options import AsJson, Url
from onnxpress.documents import Dataset, Model
from onnxpress.errors import UsageError
from onnxpress.model_names import split_version
from onnxpress.terminal import give, give_json, session, tell

_SHA256 = re.compile("[0-9a-f]{64}")


def link(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="A finished job, a model, @ALIAS, NAME@VERSION, a dataset, or an artifact's digest."
        ),
    ],
    *,
    hours: Annotated[float, typer.Option(min=0.001, metavar="N", help="How long it is valid.")] = 24.0,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Give an address that a file can be had from without a key; it ends with its time, and with the key that made it."""
    with session(url, as_json=as_json) as client:
        sha256, name = _named(client, what)
        made = client.artifacts.link(sha256, hours=hours, name=name)
        tell("whoever has this address has the file")
        if as_json:
            give_json({"url": made, "exit_code": 0})
        else:
            give(made)


def _named(client: Client, what: str) -> tuple[str, str | None]:
    """Give the digest that is downloaded, and the file's name."""
    if _SHA256.fullmatch(what):
        return what, None
    if what.startswith(("mdl_", "@")) or split_version(what) is not None:
        return _digest(client.models.get(what))
    if what.startswith("dst_"):
        return _digest(client.datasets.get(what))
    if what.startswith("job_"):
        output = client.jobs.get(what).output_model
        if output is None:
            raise UsageError(f"{what} makes no network")
        return _digest(client.models.get(output))
    raise UsageError(f"{what!r} is neither the id of a job, model or dataset nor @ALIAS nor NAME@VERSION nor a sha256")


def _digest(found: Model | Dataset) -> tuple[str, str | None]:
    digest = found.sha256 or found.artifact
    if digest is None:
        raise UsageError(f"{found.id} is {found.state} and has no bytes")
    ending = ".onnx" if isinstance(found, Model) else ".npz"
    is_plain = found.name is None or found.name.endswith((".onnx", ".npz", ".safetensors", ".zip"))
    return digest, found.name if is_plain else f"{found.name}{ending}"
