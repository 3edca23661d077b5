"""A folder of recordings (`.wav`) as one array of float32, from -1 to 1."""

import sys
import wave
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxpress.dataset_conversion.class_folders import find
from onnxpress.dataset_conversion.declaration import Converted, declaration
from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

RECORDINGS = frozenset({".wav", ".wave"})
Fit = Literal["exact", "cut", "split"]
_CONVERT = "convert it: ffmpeg -i IN -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav"


@dataclass(frozen=True)
class Sound:
    """How a recording becomes samples: its `rate` in Hz has to be that, its channels are averaged, integers become -1 to 1.

    `length` is in values. `fit` says what becomes of a recording of another length: `exact` refuses it; `cut` takes its
    beginning, and fills up with zeros at the end; `split` makes a sample of every full stretch of it, and of what is left one
    filled up with zeros. Without `length` all recordings have to be of one length.
    """

    rate: int
    length: int | None = None
    fit: Fit = "exact"
    channel_axis: bool = False

    def told(self, length: int) -> str:
        """Say in words what happens to a recording."""
        fitted = {
            "exact": f"all of {length} values",
            "cut": f"the first {length} values of each, filled up with zeros",
            "split": f"cut into stretches of {length} values, the last one filled up with zeros",
        }[self.fit]
        shape = f"[N, 1, {length}]" if self.channel_axis else f"[N, {length}]"
        return f"{self.rate} Hz; channels averaged; integers divided by their full scale, -1 to 1; {fitted}; float32 {shape}"


def audio_to_npz(
    folder: Path, target: Path, *, name: str, sound: Sound, classes: Sequence[str] | None = None
) -> Converted:
    """Write the recordings of a folder as one array; subfolders, if there are any, are classes and become the label.

    `classes` names the subfolders in the order of their numbers; by default that is alphabetical. Raises UsageError for a file
    that is no WAV of integers, or has another rate or length than the others.
    """
    if sound.length is None and sound.fit != "exact":
        raise UsageError(f"to {sound.fit} recordings, a length is needed")
    found = find(folder, RECORDINGS, "recordings", classes)
    paths = [path for path, _ in found.files]
    counts = {path: _values(path, sound.rate) for path in paths}
    length = _length(counts, sound)
    repeats = [-(-counts[path] // length) if sound.fit == "split" else 1 for path in paths]
    count = sum(repeats)
    shape = (count, 1, length) if sound.channel_axis else (count, length)
    summary = f"{len(paths)} recordings, {count} samples, into `{name}`: {sound.told(length)}. {found.told}"
    parameters = {
        "input": name,
        "rate": sound.rate,
        "length": length,
        "fit": sound.fit,
        "channels": "mean",
        "scale": "integers / full scale",
        "channel_axis": sound.channel_axis,
        "dtype": "float32",
    }
    said = declaration("audio", summary, parameters, found.classes)
    with NpzWriter(target) as npz:
        npz.add(name, "float32", shape, (piece for path in paths for piece in _pieces(path, length, sound.fit)))
        found.write(npz, repeats)
        npz.declare(said)
    return Converted(target, count, found.classes, said)


def _length(counts: dict[Path, int], sound: Sound) -> int:
    first = next(iter(counts))
    length = sound.length or counts[first]
    for path, count in counts.items():
        if sound.fit == "exact" and count != length:
            than = f"{length} were asked for" if sound.length else f"{first} has {length}"
            raise UsageError(f"{path} has {count} values, but {than}; give a length, and cut or split to it")
    return length


def _values(path: Path, rate: int) -> int:
    """Count the values of a recording; raises UsageError where it is none of that rate."""
    with _opened(path, rate) as file:
        if file.getframerate() != rate:
            raise UsageError(f"{path} has {file.getframerate()} Hz, not {rate}; {_CONVERT.format(rate=rate)}")
        if not file.getnframes():
            raise UsageError(f"{path} is empty")
        return file.getnframes()


def _opened(path: Path, rate: int) -> wave.Wave_read:
    try:
        return wave.open(str(path), "rb")
    except (OSError, EOFError, wave.Error) as error:
        raise UsageError(f"{path} is no WAV of integers ({error}); {_CONVERT.format(rate=rate)}") from error


def _pieces(path: Path, length: int, fit: Fit) -> Iterator[bytes]:
    with wave.open(str(path), "rb") as file:
        values = _floats(file.readframes(file.getnframes()), file.getsampwidth(), file.getnchannels())
    stops = range(length, len(values) + length, length) if fit == "split" else (length,)
    for stop in stops:
        piece = values[stop - length : stop]
        piece.extend([0.0] * (length - len(piece)))
        if sys.byteorder == "big":
            piece.byteswap()
        yield piece.tobytes()


def _floats(raw: bytes, width: int, channels: int) -> "array[float]":
    """Give the mean of all channels, from -1 to 1."""
    integers, full = _integers(raw, width)
    if channels == 1:
        return array("f", (value / full for value in integers))
    means = (sum(integers[start : start + channels]) / channels for start in range(0, len(integers), channels))
    return array("f", (value / full for value in means))


def _integers(raw: bytes, width: int) -> tuple["array[int]", float]:
    if width == 1:
        # Eight bits are unsigned around 128.
        return array("h", (value - 128 for value in raw)), 128.0
    if width == 3:
        wide = bytearray(len(raw) // 3 * 4)
        for byte in range(3):
            wide[byte + 1 :: 4] = raw[byte::3]
        raw = bytes(wide)
    integers = array("h" if width == 2 else "i")
    integers.frombytes(raw)
    if sys.byteorder == "big":
        integers.byteswap()
    return integers, float(1 << (15 if width == 2 else 31))
