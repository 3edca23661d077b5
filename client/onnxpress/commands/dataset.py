"""`onnxpress dataset`: raw images, recordings, texts, tables and arrays become data, and say what was done to them."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from onnxpress.client import Client
from onnxpress.commands.options import AsJson, Timeout, Url, writable
from onnxpress.dataset_conversion import (
    Converted,
    Interpolation,
    Layout,
    Pixels,
    Sound,
    audio_to_npz,
    csv_to_npz,
    images_to_npz,
    npy_to_npz,
    texts_to_npz,
)
from onnxpress.dataset_conversion.audio import Fit
from onnxpress.dataset_conversion.texts import Part
from onnxpress.documents import Dataset
from onnxpress.errors import UsageError
from onnxpress.live_progress import LiveProgress
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

dataset = typer.Typer(
    no_args_is_help=True,
    help="Make data of what you have; the file says what was done to it, and reports repeat that. Stored at once, or kept with --out.",
)

Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="For people; by default the source's.")]
Metric = Annotated[str | None, typer.Option("--metric", metavar="NAME", help="What the labels are judged by.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Keep the .npz here instead of storing it.")]
Upload = Annotated[bool, typer.Option("--upload", help="With --out: store it too.")]
Input = Annotated[str, typer.Option("--input", metavar="NAME", help="The network's input that it is for.")]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes", metavar="FILE", help="A name on each line, in the order of their numbers; else alphabetical."
    ),
]
Label = Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="The column of labels.")]
Numbers = Annotated[str | None, typer.Option(metavar="N,N,N", help="Per channel, or one for all.")]


@dataset.command()
def images(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images; subfolders are classes.")],
    *,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="What the network takes, such as 224x224.")] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make the shorter side this long, then cut the size out of the middle; else stretched.",
        ),
    ] = None,
    interpolation: Annotated[
        str, typer.Option(metavar="|".join(get_args(Interpolation)), help="How sizes change.")
    ] = "bilinear",
    channels: Annotated[str, typer.Option(metavar="rgb|bgr|gray", help="Their order.")] = "rgb",
    layout: Annotated[str, typer.Option(metavar="nchw|nhwc", help="Order of the axes.")] = "nchw",
    scale: Annotated[
        str | None,
        typer.Option(metavar="N|1/N", help="Factor of each value, such as 1/255; without any of these, bytes."),
    ] = None,
    mean: Numbers = None,
    std: Numbers = None,
    array: Input = "input",
    classes: Classes = None,
    out: Out = None,
    upload: Upload = False,
    name: Name = None,
    metric: Metric = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Images as an array: (value * scale - mean) / std for each channel, in the order that the network gets them."""

    def convert(target: Path) -> Converted:
        pixels = Pixels(
            *image_size(size),
            gray=one_of("--channels", channels, ("rgb", "bgr", "gray")) == "gray",
            layout=image_layout(layout),
            scale=number(scale),
            mean=numbers(mean),
            std=numbers(std),
            resize=resize,
            interpolation=cast("Interpolation", one_of("--interpolation", interpolation, get_args(Interpolation))),
            bgr=channels == "bgr",
        )
        return images_to_npz(folder, target, name=array, pixels=pixels, classes=_lines(classes))

    _make(convert, folder, _Delivery(out, upload, name, metric, timeout, as_json, url))


@dataset.command()
def audio(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings (.wav); subfolders are classes.")],
    *,
    rate: Annotated[
        int, typer.Option(min=1, metavar="HZ", help="What the network takes; other recordings are refused.")
    ],
    seconds: Annotated[float | None, typer.Option(min=0.0001, metavar="N", help="Length of a sample.")] = None,
    length: Annotated[int | None, typer.Option(min=1, metavar="N", help="The same as a number of values.")] = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="exact|cut|split", help="Recordings of another length: refused, their beginning, or all stretches."
        ),
    ] = "exact",
    channel_axis: Annotated[
        bool, typer.Option("--channel-axis", help="[N, 1, length] instead of [N, length].")
    ] = False,
    array: Input = "input",
    classes: Classes = None,
    out: Out = None,
    upload: Upload = False,
    name: Name = None,
    metric: Metric = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Recordings as an array of float32 from -1 to 1; several channels are averaged."""

    def convert(target: Path) -> Converted:
        if seconds is not None and length is not None:
            raise UsageError("--seconds and --length say the same; give one")
        wanted = length if seconds is None else round(seconds * rate)
        sound = Sound(rate, wanted, cast("Fit", one_of("--fit", fit, get_args(Fit))), channel_axis)
        return audio_to_npz(folder, target, name=array, sound=sound, classes=_lines(classes))

    _make(convert, folder, _Delivery(out, upload, name, metric, timeout, as_json, url))


@dataset.command()
def text(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .txt with a text on each line, a .csv or a .jsonl.")
    ],
    *,
    tokenizer: Annotated[
        Path, typer.Option(metavar="FILE", help="The network's tokenizer.json, or the folder it lies in.")
    ],
    length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cut and pad to so many tokens; else to the longest.")
    ] = None,
    varying: Annotated[bool, typer.Option("--varying", help="Each text in its own length, without padding.")] = False,
    column: Annotated[str | None, typer.Option("--column", metavar="COLUMN", help="The column of texts.")] = None,
    label: Label = None,
    ids: Annotated[str, typer.Option(metavar="NAME", help="The network's input for token ids.")] = "input_ids",
    mask: Annotated[
        str, typer.Option(metavar="NAME", help="For the attention mask; empty where it takes none.")
    ] = "attention_mask",
    types: Annotated[
        str, typer.Option(metavar="NAME", help="For token types (`token_type_ids`), where it takes some.")
    ] = "",
    out: Out = None,
    upload: Upload = False,
    name: Name = None,
    metric: Metric = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Texts as token ids with their attention mask, by the tokenizer that belongs to the network."""
    named: dict[Part, str] = {"ids": ids, "mask": mask, "types": types}
    inputs = {part: each for part, each in named.items() if each}

    def convert(target: Path) -> Converted:
        return texts_to_npz(
            source,
            target,
            tokenizer=tokenizer,
            inputs=inputs,
            length=length,
            varying=varying,
            column=column,
            label=label,
        )

    _make(convert, source, _Delivery(out, upload, name, metric, timeout, as_json, url))


@dataset.command()
def table(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv with a header.")],
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME[=COLUMN,...]",
            help="Repeatable: an input and its columns; by default all but the label.",
        ),
    ] = None,
    label: Label = None,
    categories: Annotated[
        list[str] | None,
        typer.Option(
            "--category",
            metavar="COLUMN[=WORD,...]",
            help="Repeatable: a column of words, numbered as listed, else alphabetically.",
        ),
    ] = None,
    out: Out = None,
    upload: Upload = False,
    name: Name = None,
    metric: Metric = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Columns of a table as arrays [N, columns]: float32, or int64 where all of an input's columns are words."""

    def convert(target: Path) -> Converted:
        asked = dict(_parted(one) for one in inputs or ["input"])
        coded = dict(_parted(one) for one in categories or ())
        if len(asked) == 1 and not any(asked.values()):
            return csv_to_npz(source, target, name=next(iter(asked)), label=label, categories=coded)
        empty = [each for each, columns in asked.items() if not columns]
        if empty:
            raise UsageError(
                f"--input {empty[0]}: say its columns, as in {empty[0]}=COLUMN,COLUMN; there are several inputs"
            )
        return csv_to_npz(source, target, inputs=asked, label=label, categories=coded)

    _make(convert, source, _Delivery(out, upload, name, metric, timeout, as_json, url))


@dataset.command()
def npy(
    arrays: Annotated[
        list[str],
        typer.Argument(metavar="INPUT=FILE...", help="A .npy for each input and `label`, or a folder of samples."),
    ],
    *,
    out: Out = None,
    upload: Upload = False,
    name: Name = None,
    metric: Metric = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Arrays of numpy under the names of the network's inputs; values stay as they are."""

    def convert(target: Path) -> Converted:
        sources = {}
        for one in arrays:
            wanted, equals, file = one.partition("=")
            if not equals or not wanted or not file:
                raise UsageError(f"{one!r} does not name an input and its array, as in input=x.npy")
            sources[wanted] = Path(file)
        return npy_to_npz(sources, target)

    first = Path(arrays[0].partition("=")[2] or "arrays")
    _make(convert, first, _Delivery(out, upload, name, metric, timeout, as_json, url))


@dataset.command()
def show(
    dataset_id: Annotated[str, typer.Argument(metavar="DATASET", help="Id of stored data.", show_default=False)],
    *,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what stored data are, and what was done to them before."""
    with session(url, as_json=as_json) as client:
        found = client.datasets.get(dataset_id)
        if as_json:
            give_json({"dataset": found.document, "exit_code": 0})
        else:
            _show(found)


def _show(found: Dataset) -> None:
    inspection: Any = found.inspection or {}
    tell(
        f"{found.id} {found.name or ''}: {found.state}, {inspection.get('samples', '?')} samples, {inspection.get('labelled', 0)} with a label"
    )
    for one in [*inspection.get("arrays", ()), *([inspection["label"]] if inspection.get("label") else [])]:
        tell(f"  {one['name']}: {one['dtype']} {one['shape']}")
    said = found.preprocessing
    if said is None:
        tell("Nothing is said of how they were made.")
        return
    tell(str(said["summary"]))
    people().print(safe_text(json.dumps(said.get("parameters"), indent=2, ensure_ascii=False)))
    if said.get("classes"):
        tell(f"classes: {', '.join(map(str, said['classes']))}")


class _Delivery:
    """Where converted data go."""

    def __init__(  # noqa: PLR0917 - the options of a command, in their order
        self,
        out: Path | None,
        upload: bool,
        name: str | None,
        metric: str | None,
        timeout: float | None,
        as_json: bool,
        url: str | None,
    ) -> None:
        self.out, self.upload, self.name, self.metric = out, upload or out is None, name, metric
        self.timeout, self.as_json, self.url = timeout, as_json, url


def _make(convert: Callable[[Path], Converted], source: Path, to: _Delivery) -> None:
    with session(to.url, as_json=to.as_json) as client, tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        writable(to.out, "--out")
        made = convert(to.out or Path(folder) / f"{source.stem}.npz")
        tell(str(made.declaration["summary"]))
        stored = (
            store(client, made, name=to.name or source.stem, metric=to.metric, timeout=to.timeout)
            if to.upload
            else None
        )
        if to.as_json:
            document = {"dataset": stored.document if stored else None, "out": str(to.out) if to.out else None}
            give_json({**document, "preprocessing": dict(made.declaration), "exit_code": 0})
        else:
            give(stored.id if stored else str(to.out))


def store(client: Client, made: Converted, *, name: str, metric: str | None, timeout: float | None) -> Dataset:
    """Send converted data."""
    with LiveProgress(people()) as live, live.transfer(f"upload {made.path.name}") as progress:
        return client.datasets.upload(made.path, name=name, metric=metric, timeout=timeout, progress=progress)


def image_size(text: str | None) -> tuple[int, int]:
    """Read HxW."""
    height, cross, width = (text or "").partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UsageError("a folder of images needs --size, such as 224x224")
    return int(height), int(width)


def image_layout(text: str) -> Layout:
    """Read the order of the axes."""
    return cast("Layout", one_of("--layout", text, get_args(Layout)))


def one_of(option: str, text: str, known: Sequence[str]) -> str:
    """Give a word that is one of those that an option takes."""
    if text not in known:
        raise UsageError(f"{option} {text!r} is none of {', '.join(known)}")
    return text


def number(text: str | None) -> float | None:
    """Read a number, or a fraction such as 1/255."""
    if text is None:
        return None
    over, slash, under = text.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{text!r} is not a number") from None


def numbers(text: str | None) -> tuple[float, ...]:
    """Read numbers by comma."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{text!r} are not numbers") from None


def _parted(text: str) -> tuple[str, list[str]]:
    """Read NAME=A,B."""
    name, _, words = text.partition("=")
    return name, [word.strip() for word in words.split(",") if word.strip()]


def _lines(file: Path | None) -> list[str] | None:
    if file is None:
        return None
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not a readable list of classes: {error}") from error
