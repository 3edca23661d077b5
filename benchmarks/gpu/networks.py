"""Makes the networks of the GPU benchmark: ResNet-50 and BERT-base, of their real size, with weights drawn at random.

    python -m benchmarks.gpu.networks [--out DIR] [--small]

Times do not depend on what weights say, and networks that are drawn here need no download. Running statistics of ResNet-50's
normalisation are taken from some batches, so that its activations are as large as those of a trained one: with the initial
ones they double from block to block and leave the range of float16. Needs torch, torchvision and transformers.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.networks.export import Signature, export

NETWORKS = ("resnet50", "bert_base")
TOKENS = 128
SAMPLES = 64
_STATISTICS_BATCHES = 3
_IMAGES = Signature(inputs=["image"], outputs=["logits"], dynamic={"image": {0: "batch"}})
_TEXT = Signature(
    inputs=["input_ids", "attention_mask"],
    outputs=["hidden"],
    dynamic={name: {0: "batch"} for name in ("input_ids", "attention_mask")},
)


class _Encoder(nn.Module):
    """Hands on what a job can judge: the last hidden state."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Give the hidden states, float32 [N, tokens, width]."""
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def make_resnet50(folder: Path, *, small: bool) -> None:
    """Write `model.onnx` and `data.npz` (`image` float32 [N, 3, S, S]); `small`: ResNet-18's width and 64 pixels, as a trial."""
    from torchvision import models  # noqa: PLC0415  # whoever makes the other network does not need it

    size = 64 if small else 224
    torch.manual_seed(0)
    network = models.resnet18() if small else models.resnet50()
    arrays = images(SAMPLES, size)
    _settle_statistics(network, torch.from_numpy(arrays[:24]))
    example = torch.from_numpy(arrays[:2])
    export(network, [(example,)], _IMAGES, folder / "model.onnx")
    np.savez(folder / "data.npz", image=arrays)


def make_bert_base(folder: Path, *, small: bool) -> None:
    """Write `model.onnx` and `data.npz` (ids and mask int64 [N, 128], masks of differing length)."""
    from transformers import BertConfig, BertModel  # noqa: PLC0415  # whoever makes the other network does not need it

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    config = BertConfig(**(sizes if small else {}), attn_implementation="eager")
    ids, mask = texts(SAMPLES, config.vocab_size)
    example = (torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2]))
    network = _Encoder(BertModel(config, add_pooling_layer=False))
    export(network, [example], _TEXT, folder / "model.onnx")
    np.savez(folder / "data.npz", input_ids=ids, attention_mask=mask)


def images(count: int, size: int) -> npt.NDArray[np.float32]:
    """Draw pictures that differ: patches of colour at three scales, float32 [N, 3, S, S], about of variance one."""
    random = np.random.default_rng(0)
    total = np.zeros((count, 3, size, size), np.float32)
    for cells in (2, 8, 32):
        coarse = random.standard_normal((count, 3, cells, cells), np.float32)
        total += np.kron(coarse, np.ones((1, 1, size // cells, size // cells), np.float32))
    return (total / np.sqrt(3)).astype(np.float32)


def texts(count: int, words: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw token ids and masks, int64 [N, 128]; what the mask leaves out is 0."""
    random = np.random.default_rng(0)
    lengths = random.integers(TOKENS // 4, TOKENS + 1, count)
    mask = (np.arange(TOKENS)[None, :] < lengths[:, None]).astype(np.int64)
    return random.integers(1, words, (count, TOKENS)) * mask, mask


def _settle_statistics(network: nn.Module, images_of: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()
    with torch.no_grad():
        for part in images_of.chunk(_STATISTICS_BATCHES):
            network(part)
    network.eval()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("var/networks/gpu"))
    parser.add_argument("--small", action="store_true", help="networks of the same kinds that are made in a second")
    parser.add_argument("--only", choices=NETWORKS)
    options = parser.parse_args()
    for name, make in zip(NETWORKS, (make_resnet50, make_bert_base), strict=True):
        folder = options.out / name
        if options.only in {None, name} and not (folder / "data.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(folder, small=options.small)
            print(folder)


if __name__ == "__main__":
    main()
