"""A folder of images as one array: resized, cropped and normalised as it says, by Pillow."""

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from onnxpress.dataset_conversion.class_folders import find
from onnxpress.dataset_conversion.declaration import Converted, declaration
from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Pixels:
    """How an image becomes numbers: (value * scale - mean) / std per channel; without any of them, bytes as they are.

    An image is stretched to `height` x `width`; with `resize`, its shorter side is made that long, and `height` x `width` are cut
    out of the middle. `mean` and `std` are in the order of the channels that the network gets.
    """

    height: int
    width: int
    gray: bool = False
    layout: Layout = "nchw"
    scale: float | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in {0, 1, self.channels}:
                raise UsageError(f"{name} has {count} numbers for {self.channels} channels; give one, or one for each")
        if any(value == 0 for value in self.std):
            raise UsageError("std must not be 0: values are divided by it")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise UsageError(
                f"an image whose shorter side is {self.resize} is too small for {self.height}x{self.width}; resize to more"
            )

    @property
    def channels(self) -> int:
        """How many there are."""
        return 1 if self.gray else 3

    @property
    def as_bytes(self) -> bool:
        """Whether the numbers stay what they are in the file."""
        return self.scale is None and not self.mean and not self.std

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, as the network gets it."""
        inner = (self.height, self.width)
        return (self.channels, *inner) if self.layout == "nchw" else (*inner, self.channels)

    def factors(self, channel: int) -> tuple[float, float]:
        """Give a and b of a * value + b for a channel."""
        mean = self.mean[channel % len(self.mean)] if self.mean else 0.0
        std = self.std[channel % len(self.std)] if self.std else 1.0
        return (1.0 if self.scale is None else self.scale) / std, -mean / std

    def parameters(self) -> Mapping[str, Any]:
        """Give every number, defaults included."""
        order = "gray" if self.gray else "bgr" if self.bgr else "rgb"
        stated = {name: value for name, value in asdict(self).items() if name not in {"gray", "bgr"}}
        stated |= {"mean": list(self.mean), "std": list(self.std), "scale": 1.0 if self.scale is None else self.scale}
        return stated | {"channels": order, "dtype": "uint8" if self.as_bytes else "float32"}

    def told(self) -> str:
        """Say in words what happens to an image."""
        order = "grey" if self.gray else "channels blue, green, red" if self.bgr else "channels red, green, blue"
        size = f"{self.height} x {self.width} (height x width)"
        if self.resize is None:
            fitted = f"stretched to {size}"
        else:
            fitted = f"resized so that the shorter side is {self.resize}, then {size} cut out of the middle"
        if self.as_bytes:
            values = "values 0 to 255 as they are, uint8"
        else:
            values = f"(value * {1.0 if self.scale is None else self.scale:.10g}"
            values += f" - {_listed(self.mean)}) / {_listed(self.std or (1.0,))}" if self.mean or self.std else ")"
            values += ", float32"
        return f"{order}; {fitted} ({self.interpolation}); {values}; layout {self.layout.upper()}"


def images_to_npz(
    folder: Path, target: Path, *, name: str, pixels: Pixels, classes: Sequence[str] | None = None
) -> Converted:
    """Write the images of a folder as one array; subfolders, if there are any, are classes and become the label.

    `classes` names the subfolders in the order of their numbers; by default that is alphabetical. Images beside subfolders
    have no label. Needs Pillow (`pip install 'onnxpress[images]'`). Raises UsageError for what cannot be read.
    """
    image_module = _pillow()
    found = find(folder, IMAGES, "images", classes)
    count = len(found.files)
    summary = f"{count} images into `{name}`: {pixels.told()}. {found.told}"
    said = declaration("images", summary, {"input": name, **pixels.parameters()}, found.classes)
    with NpzWriter(target) as npz:
        parts = (_image(image_module, path, pixels) for path, _ in found.files)
        npz.add(name, "uint8" if pixels.as_bytes else "float32", (count, *pixels.shape), parts)
        found.write(npz)
        npz.declare(said)
    return Converted(target, count, found.classes, said)


def _listed(values: Sequence[float]) -> str:
    words = ", ".join(f"{value:.10g}" for value in values or (0.0,))
    return f"({words})" if len(values) > 1 else words


def _pillow() -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise UsageError("images need Pillow: pip install 'onnxpress[images]'") from None


def _image(image_module: Any, path: Path, pixels: Pixels) -> bytes:
    try:
        with image_module.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{path} has more than 8 bits per channel ({opened.mode}); convert it to 8 bits first")
            image = _fitted(image_module, opened.convert("L" if pixels.gray else "RGB"), pixels)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise UsageError(f"{path} is not a readable image: {error}") from error
    planes = image.split()
    if pixels.bgr:
        planes = planes[::-1]
    bands = [_band(band, channel, pixels) for channel, band in enumerate(planes)]
    if pixels.layout == "nchw":
        return b"".join(bands)
    return b"".join(_interleaved(bands, 1 if pixels.as_bytes else 4))


def _fitted(image_module: Any, image: Any, pixels: Pixels) -> Any:
    how = image_module.Resampling[pixels.interpolation.upper()]
    if pixels.resize is None:
        return image.resize((pixels.width, pixels.height), how)
    width, height = image.size
    factor = pixels.resize / min(width, height)
    # As torchvision's Resize and CenterCrop round.
    resized = image.resize((max(pixels.resize, int(width * factor)), max(pixels.resize, int(height * factor))), how)
    left, top = round((resized.width - pixels.width) / 2), round((resized.height - pixels.height) / 2)
    return resized.crop((left, top, left + pixels.width, top + pixels.height))


def _band(band: Any, channel: int, pixels: Pixels) -> bytes:
    if pixels.as_bytes:
        return bytes(band.tobytes())
    factor, offset = pixels.factors(channel)
    # Pillow computes a * v + b of floats itself.
    values = array("f", band.convert("F").point(lambda value: value * factor + offset).tobytes())
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _interleaved(bands: Sequence[bytes], width: int) -> Iterator[bytes]:
    """Turn planes into pixels."""
    mixed = bytearray(sum(map(len, bands)))
    step = width * len(bands)
    for channel, band in enumerate(bands):
        for byte in range(width):
            mixed[channel * width + byte :: step] = band[byte::width]
    yield bytes(mixed)
