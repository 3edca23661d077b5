"""Turns what people have, a folder of images or a table, into the `.npz` that the service takes."""

import csv
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Pixels:
    """How an image becomes numbers: (value * scale - mean) / std per channel; without any of them, bytes as they are."""

    height: int
    width: int
    gray: bool = False
    layout: Layout = "nchw"
    scale: float | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    @property
    def channels(self) -> int:
        """How many there are."""
        return 1 if self.gray else 3

    @property
    def as_bytes(self) -> bool:
        """Whether the numbers stay what they are in the file."""
        return self.scale is None and not self.mean and not self.std

    def factors(self, channel: int) -> tuple[float, float]:
        """Give a and b of a * value + b for a channel."""
        mean = self.mean[channel % len(self.mean)] if self.mean else 0.0
        std = self.std[channel % len(self.std)] if self.std else 1.0
        return (1.0 if self.scale is None else self.scale) / std, -mean / std


@dataclass(frozen=True)
class Converted:
    """What was written; `classes` are the names of the label's numbers, in order."""

    path: Path
    samples: int
    classes: tuple[str, ...]


def images_to_npz(folder: Path, target: Path, *, name: str, pixels: Pixels) -> Converted:
    """Write the images of a folder as one array; subfolders, if there are any, are classes and become the label.

    Needs Pillow (`pip install 'onnxpress[images]'`). Raises UsageError for what cannot be read.
    """
    image_module = _pillow()
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and _images(path)))
    found = [(path, index) for index, one in enumerate(classes) for path in _images(folder / one)]
    if not found:
        found = [(path, -1) for path in _images(folder)]
    if not found:
        raise UsageError(f"{folder} holds no images ({', '.join(sorted(IMAGES))})")
    inner = (pixels.channels, pixels.height, pixels.width)
    shape = inner if pixels.layout == "nchw" else (*inner[1:], inner[0])
    with NpzWriter(target) as npz:
        parts = (_image(image_module, path, pixels) for path, _ in found)
        npz.add(name, "uint8" if pixels.as_bytes else "float32", (len(found), *shape), parts)
        if classes:
            npz.add("label", "int64", (len(found),), (index.to_bytes(8, "little", signed=True) for _, index in found))
    return Converted(target, len(found), classes)


def csv_to_npz(source: Path, target: Path, *, name: str, label: str | None = None) -> Converted:
    """Write a table with a header as one array of float32, a row per sample; `label` names the column of class numbers.

    Words in the label's column are classes: they are numbered in alphabetical order. An empty label is none (-1).
    Raises UsageError for what is no number.
    """
    header, rows = _table(source)
    if label is not None and label not in header:
        raise UsageError(f"{source} has no column {label!r}; there are {', '.join(header)}")
    at = header.index(label) if label is not None else None
    columns = [column for column in range(len(header)) if column != at]
    if not columns:
        raise UsageError(f"{source} has no columns but the label")
    words = [row[at].strip() for row in rows] if at is not None else []
    numbers, classes = _labels(words)
    with NpzWriter(target) as npz:
        parts = (_floats(source, line, [row[column] for column in columns]) for line, row in enumerate(rows, 2))
        npz.add(name, "float32", (len(rows), len(columns)), parts)
        if words:
            npz.add("label", "int64", (len(rows),), (one.to_bytes(8, "little", signed=True) for one in numbers))
    return Converted(target, len(rows), classes)


def _table(source: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{source} is not a readable table: {error}") from error
    header = [name.strip() for name in header]
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UsageError(f"{source}, line {line}: {len(row)} values for {len(header)} columns")
    if not rows:
        raise UsageError(f"{source} holds no rows below its header")
    return header, rows


def _labels(words: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    try:
        return [int(word) if word else -1 for word in words], ()
    except ValueError:
        classes = sorted({word for word in words if word})
        return [classes.index(word) if word else -1 for word in words], tuple(classes)


def _floats(source: Path, line: int, words: Sequence[str]) -> bytes:
    try:
        return _little(array("f", map(float, words)))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{source}, line {line}: {error}") from None


def _little(values: "array[float]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _pillow() -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise UsageError("images need Pillow: pip install 'onnxpress[images]'") from None


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def _image(image_module: Any, path: Path, pixels: Pixels) -> bytes:
    try:
        with image_module.open(path) as opened:
            image = opened.convert("L" if pixels.gray else "RGB").resize((pixels.width, pixels.height))
    except (OSError, ValueError, image_module.DecompressionBombError) as error:
        raise UsageError(f"{path} is not a readable image: {error}") from error
    bands = [_band(band, channel, pixels) for channel, band in enumerate(image.split())]
    if pixels.layout == "nchw":
        return b"".join(bands)
    return b"".join(_interleaved(bands, 1 if pixels.as_bytes else 4))


def _band(band: Any, channel: int, pixels: Pixels) -> bytes:
    if pixels.as_bytes:
        return bytes(band.tobytes())
    factor, offset = pixels.factors(channel)
    # Pillow computes a * v + b of floats itself.
    values = array("f", band.convert("F").point(lambda value: value * factor + offset).tobytes())
    return _little(values)


def _interleaved(bands: Sequence[bytes], width: int) -> Iterator[bytes]:
    """Turn planes into pixels."""
    mixed = bytearray(sum(map(len, bands)))
    step = width * len(bands)
    for channel, band in enumerate(bands):
        for byte in range(width):
            mixed[channel * width + byte :: step] = band[byte::width]
    yield bytes(mixed)
