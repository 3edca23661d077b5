"""Pictures with text and shapes, drawn from a seed: pages, lines, codes and scenes as the networks of the wheels read them."""

import random
import string
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = Path("/usr/share/fonts/truetype/dejavu")
WORDS = (
    "the", "service", "keeps", "every", "network", "small", "and", "fast", "until", "a", "number", "says", "that", "it",
    "lost", "what", "its", "owner", "asked", "for", "because", "honest", "reports", "name", "each", "sample", "gate",
)  # fmt: skip

Pixels = npt.NDArray[np.float32]


class FontsMissingError(Exception):
    """There is no font to draw with; the message says how to get one."""


class Artist:
    """Draws; the same seed draws the same pictures. All are RGB, values 0 to 255."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._fonts = sorted(path for path in FONTS.glob("*.ttf") if "Math" not in path.name)
        if not self._fonts:
            raise FontsMissingError(f"{FONTS} has no fonts; install them with `apt-get install fonts-dejavu`")

    def line(self, height: int, width: int, *, flipped: bool = False) -> Pixels:
        """Draw some words on one line that fills the height."""
        paper, ink = self._colours()
        image = Image.new("RGB", (width, height), paper)
        text = " ".join(self._random.choices(WORDS, k=self._random.randint(1, 3)))
        font = self._font(int(height * self._random.uniform(0.5, 0.75)))
        while text and font.getbbox(text)[2] > width - 8:
            text = text[:-1]
        ImageDraw.Draw(image).text((4, height * 0.1), text, ink, font)
        return self._worn(image.rotate(180) if flipped else image)

    def code(self, height: int, width: int) -> Pixels:
        """Draw a captcha: four to six letters and digits at different heights and angles, and lines across."""
        paper, ink = self._colours()
        image = Image.new("RGB", (width, height), paper)
        text = "".join(self._random.choices(string.ascii_lowercase + string.digits, k=self._random.randint(4, 6)))
        step = width // (len(text) + 1)
        for at, letter in enumerate(text):
            tile = Image.new("L", (height, height), 0)
            ImageDraw.Draw(tile).text((height * 0.2, height * 0.05), letter, 255, self._font(int(height * 0.7)))
            turned = tile.rotate(self._random.uniform(-20, 20), Image.Resampling.BILINEAR)
            image.paste(Image.new("RGB", tile.size, ink), (step // 4 + at * step, self._random.randint(-5, 5)), turned)
        draw = ImageDraw.Draw(image)
        for _ in range(3):
            draw.line([self._point(height, width), self._point(height, width)], ink)
        return self._worn(image)

    def page(self, height: int, width: int) -> Pixels:
        """Draw a page: a title, paragraphs, a table and a figure."""
        paper, ink = self._colours()
        image = Image.new("RGB", (width, height), paper)
        draw = ImageDraw.Draw(image)
        top = self._random.randint(10, 30)
        draw.text((width * 0.2, top), " ".join(self._random.choices(WORDS, k=3)), ink, self._font(height // 20))
        top += height // 10
        while top < height - 60:
            top += self._block(draw, (int(width * 0.06), top, int(width * 0.94)), ink, height // 40)
        return self._worn(image)

    def scene(self, height: int, width: int) -> Pixels:
        """Draw shapes of many sizes and colours over a gradient, one of them in focus and the others blurred."""
        ends = [np.array([self._random.uniform(0, 255) for _ in range(3)]) for _ in range(2)]
        fade = np.linspace(0, 1, height)[:, None, None]
        image = Image.fromarray(
            np.broadcast_to(ends[0] * fade + ends[1] * (1 - fade), (height, width, 3)).astype(np.uint8)
        )
        for _ in range(self._random.randint(3, 9)):
            self._shape(image)
        image = image.filter(ImageFilter.GaussianBlur(self._random.uniform(1, 4)))
        self._shape(image)
        return self._worn(image)

    def _block(self, draw: ImageDraw.ImageDraw, place: tuple[int, int, int], ink: tuple[int, ...], size: int) -> int:
        left, top, right = place
        kind = self._random.choice(["text", "text", "table", "figure"])
        if kind == "text":
            font, lines = self._font(size), self._random.randint(2, 6)
            for line in range(lines):
                text = " ".join(self._random.choices(WORDS, k=12))
                while font.getbbox(text)[2] > right - left:
                    text = text.rsplit(" ", 1)[0]
                draw.text((left, top + line * size * 1.4), text, ink, font)
            return int(lines * size * 1.4) + size
        rows = self._random.randint(3, 6)
        height = rows * 2 * size
        draw.rectangle((left, top, right, top + height), outline=ink)
        if kind == "figure":
            points = [
                (left + (right - left) * at / 9, top + self._random.uniform(0.1, 0.9) * height) for at in range(10)
            ]
            draw.line(points, ink, 2)
            return height + size
        for row in range(rows):
            draw.line([(left, top + row * 2 * size), (right, top + row * 2 * size)], ink)
            for column in range(4):
                at = (left + 5 + column * (right - left) // 4, top + row * 2 * size + 4)
                draw.text(at, f"{self._random.uniform(0, 99):.2f}", ink, self._font(size))
        return height + size

    def _shape(self, image: Image.Image) -> None:
        draw = ImageDraw.Draw(image)
        width, height = image.size
        (x, y), reach = self._point(height, width), self._random.uniform(0.05, 0.3) * height
        box = (x - reach, y - reach, x + reach, y + reach)
        colour = tuple(self._random.randint(0, 255) for _ in range(3))
        if self._random.random() < 0.5:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour, outline=(0, 0, 0))

    def _point(self, height: int, width: int) -> tuple[float, float]:
        return self._random.uniform(0, width), self._random.uniform(0, height)

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self._random.choice(self._fonts), max(size, 6))

    def _colours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        light = tuple(self._random.randint(170, 255) for _ in range(3))
        dark = tuple(self._random.randint(0, 90) for _ in range(3))
        return (light, dark) if self._random.random() < 0.8 else (dark, light)

    def _worn(self, image: Image.Image) -> Pixels:
        """Blur and noise, as from a camera."""
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(self._random.uniform(0, 0.6))), np.float32)
        noise = np.random.default_rng(self._random.getrandbits(32)).normal(0, self._random.uniform(0, 6), blurred.shape)
        return np.clip(blurred + noise, 0, 255).astype(np.float32)
