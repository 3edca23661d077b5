"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from onnxpress.errors import UsageError
from onnxpress.quantities import parse_patience


def _patience(text: str) -> float:
    try:
        return parse_patience(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Address of the service.",
        envvar="ONNXPRESS_URL",
        show_default="the local service's",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Give one JSON document on stdout.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        parser=_patience,
        metavar="TIME",
        help="Longest time for all of it, such as 90 or 30m; exit code 6 when it is over.",
    ),
]
Keep = Annotated[bool, typer.Option("--keep", help="When interrupted, leave the remote job running.")]
Data = Annotated[str | None, typer.Option(metavar="FILE", help="NPZ file, or the id of a stored dataset.")]
Judge = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="NPZ file or stored dataset that alone judges; by default a part of --data does."
    ),
]
Metric = Annotated[str | None, typer.Option(metavar="NAME", help="What the labels are judged by, such as top1.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)]


def writable(path: Path | None, option: str) -> None:
    """Refuse a path that cannot be written before work is done for it; raises UsageError."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")


def write(path: Path, text: str) -> None:
    """Write a small file; raises UsageError when that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
