"""Fashion-MNIST as uint8 arrays, and the `.npz` datasets that the networks trained on it are judged with."""

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_SAMPLES = 512
UNLABELLED = -1
UNLABELLED_FILE = "unlabelled.npz"
"""More samples beside a network's `data.npz`, to train on."""

_PREFIX = {"train": "train", "test": "t10k"}
_UINT8_CODE = 8


class DatasetMissingError(Exception):
    """Fashion-MNIST is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Samples:
    """Images, uint8 [N, 1, 28, 28] with values 0..255, and their classes, int64 [N] with values 0..9."""

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.label)

    def first(self, count: int) -> "Samples":
        """The first `count` samples."""
        return Samples(self.image[:count], self.label[:count])


def load(split: Literal["train", "test"], folder: Path | None = None) -> Samples:
    """The 60,000 training or the 10,000 test images, in the order of the published files."""
    folder = folder or DEBIAN_FOLDER
    prefix = _PREFIX[split]
    image = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    label = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return Samples(image[:, None, :, :], label.astype(np.int64))


def calibration_and_test(calibration: Samples, test: Samples) -> dict[str, npt.NDArray[Any]]:
    """A dataset of onnxpress: `calibration` without its labels, then `test` with them.

    Label -1 means unlabelled: such samples calibrate, labelled ones are held out and judge the result.
    """
    unlabelled = np.full(len(calibration), UNLABELLED, dtype=np.int64)
    return {
        "image": np.concatenate([calibration.image, test.image]),
        "label": np.concatenate([unlabelled, test.label]),
    }


def write(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Save `arrays` under their names as a compressed `.npz` file."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DatasetMissingError(
            f"{path} is missing. Install Debian's copy with `apt-get install dataset-fashion-mnist`, "
            "or name the folder that holds the four files of Fashion-MNIST with `--data DIR`."
        ) from None
    zeros, code, rank = struct.unpack(">HBB", raw[:4])
    if zeros != 0 or code != _UINT8_CODE:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", raw[4:start])
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
