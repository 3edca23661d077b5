"""Give a network more samples without labels, for what is trained on them: those that follow its calibration samples.

    python benchmarks/networks/unlabelled.py residual_cnn|se_cnn|vit|minilm|ppocr_det [--count N] [--out DIR]

Writes `unlabelled.npz` beside the network's `data.npz`. Images and sentences are those that the network was trained on, text pages
are drawn anew; none of them judges anything.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data, reviews
from benchmarks.networks.ppocr import Artist, normalised
from benchmarks.networks.sentences import load_parts

REPOSITORY = Path(__file__).resolve().parents[2]
COUNT = {"residual_cnn": 4488, "se_cnn": 4488, "vit": 4488, "minilm": 4488, "ppocr_det": 64}
"""With the calibration samples of the image networks that makes 5,000."""

Arrays = dict[str, npt.NDArray[np.generic]]


def main() -> None:
    """Entry point of the script."""
    networks = REPOSITORY / "var" / "networks"
    parser = argparse.ArgumentParser(description="Write more samples without labels beside a network's data.")
    parser.add_argument("network", choices=sorted(COUNT))
    parser.add_argument("--count", type=int, metavar="N", help=f"default: {COUNT}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the network's folder; default: var/networks/NETWORK")
    parser.add_argument("--downloads", type=Path, metavar="DIR", default=networks / "downloads")
    parser.add_argument("--seed", type=int, default=0, help="what the network was made with")
    options = parser.parse_args()
    kinds: dict[str, Callable[[argparse.Namespace, int], Arrays]] = {"minilm": _sentences, "ppocr_det": _pages}
    arrays = kinds.get(options.network, _images)(options, options.count or COUNT[options.network])
    path = (options.out or networks / options.network) / data.UNLABELLED_FILE
    data.write(arrays, path)
    print(f"{path}: {len(next(iter(arrays.values())))} samples")


def _images(options: argparse.Namespace, count: int) -> Arrays:
    del options
    return {"image": data.load("train").image[data.CALIBRATION_SAMPLES :][:count]}


def _sentences(options: argparse.Namespace, count: int) -> Arrays:
    _, training = load_parts(options.downloads, options.seed)
    more = training.part(slice(data.CALIBRATION_SAMPLES, data.CALIBRATION_SAMPLES + count))
    return {"input_ids": more.ids, "attention_mask": more.mask}


def _pages(options: argparse.Namespace, count: int) -> Arrays:
    # Another seed: the same one would draw the pages again that calibrate and judge.
    artist = Artist([review.text for review in reviews.load(options.downloads)], options.seed + 1)
    return {"x": np.stack([normalised(artist.page()[0]) for _ in range(count)])}


if __name__ == "__main__":
    main()
