"""PyTorch -> ONNX -> onnxpress: a classifier of 8x8 digits is trained, exported, compressed and written as a folder to serve.

It needs torch, onnx, scikit-learn (for the digits), the onnxpress client, and a running service (`make serve`):
`python compress.py --out digits`
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import onnxpress

EPOCHS, BATCH, HELD_OUT = 12, 64, 900


class Digits(nn.Module):
    """Two convolutions and a head: as much as the digits need."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(256, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the scores of the ten digits."""
        return self.head(self.body(image).flatten(1))


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Train on these digits."""
    torch.manual_seed(0)
    network = Digits()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for at in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[at]), y[at]).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    network = train(images[HELD_OUT:], labels[HELD_OUT:])

    model, data = Path("digits.onnx"), Path("digits.npz")
    example = torch.zeros(1, 1, 8, 8)
    axes = {"image": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(
        network, (example,), str(model), input_names=["image"], output_names=["scores"], dynamic_axes=axes, dynamo=False
    )
    # Digits that were trained on calibrate, and have no label here; the others select and judge.
    label = np.where(np.arange(len(labels)) < HELD_OUT, labels, -1)
    np.savez(data, image=images, label=label)

    with onnxpress.Client() as client:
        spec = {
            "kind": "compress",
            "model": client.models.upload(model).id,
            "dataset": client.datasets.upload(data, metric="top1").id,
            "recipe": {"passes": [{"type": "simplify"}, {"type": "fuse"}, {"type": "quantize_static"}]},
            "gates": [
                {"metric": "top1", "rule": "max_drop", "value": 0.03},
                {"metric": "size_bytes", "rule": "max_ratio", "value": 0.5},
            ],
        }
        job = client.jobs.wait(client.jobs.submit(spec).id)
        print(client.jobs.report(job.id)["summary"])
        print(f"verdict: {job.verdict}")
        client.exports.folder(job.output_model, asked.out)


if __name__ == "__main__":
    main()
