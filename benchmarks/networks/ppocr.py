"""Fetch the PP-OCRv4 networks and draw the text images that judge them.

    python benchmarks/networks/ppocr.py [--out DIR] [--seed 0]

The three networks (detection, direction, recognition; Apache-2.0) come out of the package `rapidocr-onnxruntime`, the
text from film reviews, the fonts from Debian's `fonts-dejavu`. Preparation of the images is PP-OCR's own: blue, green,
red; (value / 255 - 0.5) / 0.5; lines scaled to height 48 and padded with zeros.

Writes into DIR (default var/networks): `ppocr_det`, `ppocr_cls` and `ppocr_rec`, each with `model.onnx`, `data.npz`,
`network.json`. `ppocr_det/truth.npz` has the mask [N, 1, H, W] that every page should give, `ppocr_rec/truth.json` the
text of every line. Only `ppocr_cls/data.npz` has labels (0: upright, 1: upside down, -1: for calibration); the other
datasets start with the samples for calibration, and `network.json` says how many.
"""

import argparse
import json
import random
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageDraw, ImageFilter, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data, packages, reviews
from benchmarks.networks.export import accuracy, predict

REPOSITORY = Path(__file__).resolve().parents[2]
FONT_FOLDER = Path("/usr/share/fonts/truetype/dejavu")
MODELS = {
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
}
PAGE = 480
LINE_HEIGHT = 48
LINE_WIDTH = {"cls": 192, "rec": 320}
DET_CALIBRATION, DET_TEST = 32, 64
LINE_CALIBRATION, LINE_TEST = 128, 500
SHRINK = 0.4
MASK_THRESHOLD = 0.3
"""PP-OCR takes a pixel for text above this probability."""

Floats = npt.NDArray[np.float32]


class Line(NamedTuple):
    """A drawn line of text."""

    text: str
    image: Image.Image


class Artist:
    """Draws text in random fonts, sizes and colours; the same seed draws the same pictures."""

    def __init__(self, sentences: Sequence[str], seed: int) -> None:
        self.random = random.Random(seed)
        self.words = [word for sentence in sentences for word in sentence.split() if word.isascii()]
        self.fonts = sorted(path for path in FONT_FOLDER.glob("*.ttf") if "Math" not in path.name)
        if not self.fonts:
            sys.exit(f"{FONT_FOLDER} has no fonts. Install them with `apt-get install fonts-dejavu`.")

    def line(self, longest: int) -> Line:
        """One to four words of running text, at most `longest` characters, cropped to its line."""
        text = self._text(longest)
        font = self._font(self.random.randint(20, 40))
        left, top, right, bottom = font.getbbox(text)
        margin = self.random.randint(2, 6)
        paper, ink = self._colours()
        size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
        image = Image.new("RGB", size, paper)
        ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, font)
        return Line(
            text, self._wear(image.rotate(self.random.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=paper))
        )

    def page(self) -> tuple[Image.Image, Image.Image]:
        """A square page of lines, and the mask of their kernels."""
        paper, ink = self._colours()
        image = Image.new("RGB", (PAGE, PAGE), paper)
        mask = Image.new("L", (PAGE, PAGE), 0)
        top = self.random.randint(10, 40)
        while top < PAGE - 50:
            font = self._font(self.random.randint(14, 34))
            text, left = self._text(40), self.random.randint(8, 120)
            box = font.getbbox(text)
            while box[2] + left > PAGE - 8 and " " in text:
                text = text.rsplit(" ", 1)[0]
                box = font.getbbox(text)
            ImageDraw.Draw(image).text((left, top), text, ink, font)
            kernel = _kernel((left + box[0], top + box[1], left + box[2], top + box[3]))
            ImageDraw.Draw(mask).rectangle(kernel, 255)
            top += int(box[3]) + self.random.randint(6, 40)
        angle = self.random.uniform(-4, 4)
        turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=paper)
        return self._wear(turned), mask.rotate(angle)

    def _text(self, longest: int) -> str:
        start = self.random.randrange(len(self.words) - 8)
        words = self.words[start : start + self.random.randint(1, 8)]
        while len(words) > 1 and len(" ".join(words)) > longest:
            words.pop()
        return " ".join(words)[:longest]

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self.random.choice(self.fonts), size)

    def _colours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Paper and ink, one light and one dark."""
        light = tuple(self.random.randint(170, 255) for _ in range(3))
        dark = tuple(self.random.randint(0, 90) for _ in range(3))
        return (light, dark) if self.random.random() < 0.8 else (dark, light)

    def _wear(self, image: Image.Image) -> Image.Image:
        """Blur and noise, as from a camera."""
        blurred = image.filter(ImageFilter.GaussianBlur(self.random.uniform(0, 0.8)))
        noise = np.random.default_rng(self.random.getrandbits(32)).normal(
            0, self.random.uniform(0, 8), (*image.size[::-1], 3)
        )
        return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description="Fetch the PP-OCRv4 networks and draw their test images.")
    networks = REPOSITORY / "var" / "networks"
    parser.add_argument("--out", type=Path, metavar="DIR", default=networks)
    parser.add_argument("--downloads", type=Path, metavar="DIR", default=networks / "downloads")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    artist = Artist([review.text for review in reviews.load(options.downloads)], options.seed)
    folders = _unpack(packages.fetch(packages.PPOCR, options.downloads), options.out)
    for facts in (
        _detection(artist, folders["det"]),
        _direction(artist, folders["cls"]),
        _recognition(artist, folders["rec"]),
    ):
        folder = options.out / str(facts["network"])
        facts |= {"seed": options.seed, "bytes": (folder / "model.onnx").stat().st_size}
        (folder / "network.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps(facts, indent=2))


def _unpack(wheel: Path, out: Path) -> dict[str, Path]:
    """The folder of each network, with its model inside."""
    folders = {}
    with zipfile.ZipFile(wheel) as archive:
        for name, file in MODELS.items():
            folders[name] = out / f"ppocr_{name}"
            folders[name].mkdir(parents=True, exist_ok=True)
            (folders[name] / "model.onnx").write_bytes(archive.read(f"rapidocr_onnxruntime/models/{file}"))
    return folders


def _detection(artist: Artist, folder: Path) -> dict[str, Any]:
    pages = [artist.page() for _ in range(DET_CALIBRATION + DET_TEST)]
    x = np.stack([normalised(image) for image, _ in pages])
    mask = np.stack([np.asarray(mask)[None] > 0 for _, mask in pages])
    data.write({"x": x}, folder / "data.npz")
    data.write({"mask": mask}, folder / "truth.npz")
    found = predict(folder / "model.onnx", {"x": x[DET_CALIBRATION:]}, batch=4) > MASK_THRESHOLD
    truth = mask[DET_CALIBRATION:]
    return {
        "network": "ppocr_det",
        "calibration": DET_CALIBRATION,
        "test": DET_TEST,
        "mask_iou_with_truth": float((found & truth).sum() / (found | truth).sum()),
    }


def _direction(artist: Artist, folder: Path) -> dict[str, Any]:
    count = LINE_CALIBRATION + LINE_TEST
    lines = [artist.line(24).image for _ in range(count)]
    label = np.array([artist.random.randrange(2) for _ in range(count)], dtype=np.int64)
    turned = [line.rotate(180) if down else line for line, down in zip(lines, label, strict=True)]
    x = np.stack([_line_input(line, LINE_WIDTH["cls"]) for line in turned])
    test = label[LINE_CALIBRATION:]
    hidden = np.full(LINE_CALIBRATION, data.UNLABELLED, dtype=np.int64)
    data.write({"x": x, "label": np.concatenate([hidden, test])}, folder / "data.npz")
    probabilities = predict(folder / "model.onnx", {"x": x[LINE_CALIBRATION:]})
    return {
        "network": "ppocr_cls",
        "calibration": LINE_CALIBRATION,
        "test": LINE_TEST,
        "top1_test": accuracy(probabilities, test),
    }


def _recognition(artist: Artist, folder: Path) -> dict[str, Any]:
    lines = [artist.line(24) for _ in range(LINE_CALIBRATION + LINE_TEST)]
    x = np.stack([_line_input(line.image, LINE_WIDTH["rec"]) for line in lines])
    data.write({"x": x}, folder / "data.npz")
    texts = [line.text for line in lines]
    (folder / "truth.json").write_text(json.dumps(texts, indent=0) + "\n")
    read = decode(
        predict(folder / "model.onnx", {"x": x[LINE_CALIBRATION:]}, batch=25), alphabet(folder / "model.onnx")
    )
    right = [got == text for got, text in zip(read, texts[LINE_CALIBRATION:], strict=True)]
    return {
        "network": "ppocr_rec",
        "calibration": LINE_CALIBRATION,
        "test": LINE_TEST,
        "lines_read_without_error": sum(right) / len(right),
    }


def alphabet(model: Path) -> list[str]:
    """The character of each class of the recognition network; class 0 is the blank, the last one the space."""
    properties = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return ["", *properties["character"].splitlines(), " "]


def decode(probabilities: npt.NDArray[Any], characters: Sequence[str]) -> list[str]:
    """The text of each line [N, steps, classes]: best class per step, repeats merged, blanks dropped."""
    best = probabilities.argmax(axis=2)
    changed = np.diff(best, axis=1, prepend=0) != 0
    return ["".join(characters[index] for index in row[new]) for row, new in zip(best, changed, strict=True)]


def _kernel(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The part of a text box that the detector learns to mark (Liao et al., Differentiable Binarization, 2020)."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    inset = width * height * (1 - SHRINK**2) / (2 * (width + height))
    inset = min(inset, (min(width, height) - 1) / 2)
    return left + inset, top + inset, right - inset, bottom - inset


def _line_input(image: Image.Image, width: int) -> Floats:
    """A line scaled to height 48, squeezed where it is too long, padded with zeros to `width`."""
    scaled = min(width, -(-image.width * LINE_HEIGHT // image.height))
    padded = np.zeros((3, LINE_HEIGHT, width), dtype=np.float32)
    padded[:, :, :scaled] = normalised(image.resize((scaled, LINE_HEIGHT), Image.Resampling.BILINEAR))
    return padded


def normalised(image: Image.Image) -> Floats:
    """[3, H, W], blue, green, red, values -1..1."""
    values = np.asarray(image, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1)
    return (values / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


if __name__ == "__main__":
    main()
