"""Commands about what is stored: push, data, models, prunability."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table

from onnxpress import wording
from onnxpress.commands.dataset import image_layout, image_size, number, numbers
from onnxpress.commands.options import AsJson, Timeout, Url, writable
from onnxpress.dataset_conversion import Pixels, csv_to_npz, images_to_npz
from onnxpress.deadline import Deadline
from onnxpress.documents import Model
from onnxpress.errors import UsageError
from onnxpress.live_progress import LiveProgress
from onnxpress.model_names import is_stored_model
from onnxpress.network_files import digest_network
from onnxpress.render_prunability import show_prunability
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

ImageSize = Annotated[str | None, typer.Option(metavar="HxW", help="Images: height and width, such as 224x224.")]
Numbers = Annotated[str | None, typer.Option(metavar="N,N,N", help="Images: per channel, or one for all.")]


def push(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="ONNX file, or a zip of one with its external data; data beside the file go with it."
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="For people; by default the file's.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="ALIAS", help="Have this alias name it from now on.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Repeatable.")] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Store a network and have it inspected; bytes that the service has already are not sent again."""
    with session(url, as_json=as_json) as client:
        with LiveProgress(people()) as live, live.transfer(f"upload {model.name}") as progress:
            stored = client.models.upload(model, name=name, timeout=timeout, progress=progress)
        if alias or tag:
            stored = client.models.change(stored.id, alias=alias, tags=tag)
        if as_json:
            give_json({"model": stored.document, "exit_code": 0})
        else:
            if stored.version is not None:
                tell(f"{stored.name}@{stored.version}")
            give(stored.id)


def models(
    *,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="Repeatable: only those with all of them.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Only those of this name, which are its versions.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Only so many, the newest.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List stored networks, newest first: a table on a terminal, bare ids in a pipe."""
    with session(url, as_json=as_json) as client:
        found = list(client.models.list(tags=tag or (), name=name, limit=limit))
        if as_json:
            give_json({"items": [dict(model.document) for model in found]})
        elif sys.stdout.isatty():
            people().print(_table(found))
        else:
            for model in found:
                give(model.id)


def _table(found: Sequence[Model]) -> Table:
    table = Table()
    goes = any(model.document.get("expires_at") for model in found)
    for column in ("model", "name", "version", "state", "size", "aliases", "tags", *(("expires",) if goes else ())):
        table.add_column(column, no_wrap=column == "model")
    for model in found:
        size = "" if model.size is None else wording.size(model.size)
        alias = " ".join(model.document.get("aliases") or ())
        row: list[RenderableType] = [
            model.id,
            safe_text(model.name),
            str(model.version or ""),
            model.state,
            size,
            safe_text(alias),
            safe_text(" ".join(model.tags)),
        ]
        if goes:
            row.append(str(model.document.get("expires_at") or "")[:10])
        table.add_row(*row)
    return table


def prunability(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="ONNX file, or a stored model: its id, @ALIAS or NAME@VERSION.", show_default=False
        ),
    ],
    *,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what of a network could be pruned: shares, groups of channels, and which nodes keep theirs and why."""
    deadline = Deadline.after(timeout)
    with session(url, as_json=as_json) as client:
        model_id = model
        if not is_stored_model(model):
            file = digest_network(model)
            with LiveProgress(people()) as live, live.transfer(f"upload {file.path.name}") as progress:
                model_id = client.models.upload(file, timeout=deadline.remaining(), progress=progress).id
        found = client.models.prunability(model_id, timeout=deadline.remaining())
        if as_json:
            give_json({"model": model_id, "prunability": found.document, "exit_code": 0})
        else:
            show_prunability(found, people())
            give(model_id)


def data(
    source: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A .npz, .safetensors or zip of samples; a .csv; or a folder of images."),
    ],
    *,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="What the labels are judged by.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="For people; by default the file's.")
    ] = None,
    array: Annotated[
        str, typer.Option("--input", metavar="NAME", help="The network's input that it is for.")
    ] = "input",
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="CSV: the column of classes.")] = None,
    size: ImageSize = None,
    gray: Annotated[bool, typer.Option("--gray", help="Images: one channel instead of three.")] = False,
    layout: Annotated[str, typer.Option(metavar="nchw|nhwc", help="Images: order of the axes.")] = "nchw",
    scale: Annotated[
        str | None, typer.Option(metavar="N|1/N", help="Images: factor of each value, such as 1/255.")
    ] = None,
    mean: Numbers = None,
    std: Numbers = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also keep the converted .npz here.")] = None,
    upload: Annotated[bool, typer.Option(help="Without it, only convert to --out.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Store data for calibration and evaluation; folders of images and tables are converted first.

    Values go to the network as they are: give --scale, --mean and --std as in its training. Subfolders are classes. `onnxpress dataset`
    knows more kinds of raw data, and more of what is done to them.
    """
    with session(url, as_json=as_json) as client:
        writable(out, "--out")
        if not upload and not out:
            raise UsageError("--no-upload needs --out")
        with _converted(source, out) as target:
            if source.is_dir():
                pixels = Pixels(
                    *image_size(size), gray, image_layout(layout), number(scale), numbers(mean), numbers(std)
                )
                made = images_to_npz(source, target, name=array, pixels=pixels)
            elif source.suffix.lower() == ".csv":
                made = csv_to_npz(source, target, name=array, label=label)
            else:
                made = None
            if made:
                tell(f"{made.samples:,} samples; classes: {', '.join(made.classes) or 'not named'}")
                tell(str(made.declaration["summary"]))
            if not upload:
                give(str(out))
                return
            file = target if made else source
            with LiveProgress(people()) as live, live.transfer(f"upload {file.name}") as progress:
                stored = client.datasets.upload(
                    file, name=name or source.stem, metric=metric, timeout=timeout, progress=progress
                )
        if as_json:
            classes = list(made.classes) if made else None
            give_json({"dataset": stored.document, "classes": classes, "exit_code": 0})
        else:
            give(stored.id)


@contextmanager
def _converted(source: Path, out: Path | None) -> Iterator[Path]:
    """Give where a converted file goes: where it is to be kept, or for a while only."""
    if out:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        yield Path(folder) / f"{source.stem}.npz"
