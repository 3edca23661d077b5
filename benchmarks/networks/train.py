"""Train one of the image networks on Fashion-MNIST and write it as ONNX, with the data that judges it.

    python benchmarks/networks/train.py residual_cnn|se_cnn|vit [--out DIR] [--epochs N] [--seed 0] [--device cuda]

Writes into DIR (default var/networks/NAME): `model.onnx`; `data.npz`, 512 unlabelled calibration images of the training
set and the 10,000 labelled test images; `network.json`, how it was trained and how good it is.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks import data
from benchmarks.networks.architectures import PIXEL_MAX, build, fold_pixel_scale
from benchmarks.networks.export import Signature, accuracy, export, predict

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH = 128
EPOCHS = {"residual_cnn": 7, "se_cnn": 5, "vit": 5}
PEAK_RATE = {"residual_cnn": 8e-3, "se_cnn": 8e-3, "vit": 2e-3}
SMALL_SHARE = {"residual_cnn": 0.7, "se_cnn": 0.0, "vit": 0.0}
"""Share of the epochs that see images of half the size, at a quarter of the cost; a pooled head takes any size."""

WEIGHT_DECAY = 0.05
MAX_SHIFT = {"residual_cnn": 2, "se_cnn": 2, "vit": 0}
"""Pixels; patches on a fixed grid learn slowly from shifted images."""

QUICK_TEST = 1000
"""The examples carry only so many test images, from the start of the test set."""

SIGNATURE = Signature(inputs=["image"], outputs=["logits"], dynamic={"image": {0: "batch"}})


@dataclass(frozen=True)
class Plan:
    """How to train: the first `small_epochs` of `epochs` see images of half the size."""

    epochs: int
    small_epochs: int
    peak_rate: float
    max_shift: int
    seed: int


def main() -> None:
    """Entry point of the script."""
    options = _arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    try:
        training = data.load("train", options.data)
        test = data.load("test", options.data)
    except data.DatasetMissingError as error:
        sys.exit(str(error))
    network = build(options.network, options.qkv)
    epochs = options.epochs or EPOCHS[options.network]
    train(network, training, _plan(options, epochs), torch.device(options.device))
    fold_pixel_scale(network)
    folder = options.out or REPOSITORY / "var" / "networks" / options.network
    model = folder / "model.onnx"
    pixels = [torch.tensor(test.image[:count]).float() for count in (2, 1, 3)]
    export(network, [(images,) for images in pixels], SIGNATURE, model)
    arrays = data.calibration_and_test(training.first(data.CALIBRATION_SAMPLES), test)
    data.write(arrays, folder / "data.npz")
    logits = predict(model, {"image": test.image})
    facts = {
        "network": options.network,
        "seed": options.seed,
        "epochs": epochs,
        "threads": options.threads,
        "device": options.device,
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": model.stat().st_size,
        "top1_test_10000": accuracy(logits, test.label),
        "top1_test_first_1000": accuracy(logits[:QUICK_TEST], test.label[:QUICK_TEST]),
    }
    (folder / "network.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def train(network: nn.Module, samples: data.Samples, plan: Plan, device: torch.device) -> None:
    """Train in place on `device` with AdamW, one cycle of the learning rate, flips and small shifts."""
    network.train().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
    generator = torch.Generator().manual_seed(plan.seed)
    steps = plan.epochs * (len(samples) // BATCH)
    optimizer = torch.optim.AdamW(_parameter_groups(network), lr=plan.peak_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.peak_rate, steps, pct_start=0.2)
    started = time.monotonic()
    for epoch in range(plan.epochs):
        total = torch.zeros((), device=device)
        for images, labels in _batches(samples, plan.max_shift, generator):
            image, label = images.to(device), labels.to(device)
            optimizer.zero_grad()
            seen = functional.avg_pool2d(image, 2) if epoch < plan.small_epochs else image
            loss = functional.cross_entropy(network(seen), label)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach()
        mean = total.item() / (len(samples) // BATCH)
        print(f"epoch {epoch + 1}/{plan.epochs}: loss {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True)
    network.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _plan(options: argparse.Namespace, epochs: int) -> Plan:
    name = options.network
    return Plan(
        epochs=epochs,
        small_epochs=round(SMALL_SHARE[name] * epochs),
        peak_rate=PEAK_RATE[name],
        max_shift=MAX_SHIFT[name],
        seed=options.seed,
    )


def _parameter_groups(network: nn.Module) -> list[dict[str, object]]:
    """Weights decay; biases and normalisation vectors do not."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


def _batches(samples: data.Samples, max_shift: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented batches, values 0..1; what does not fill a batch is left out."""
    images = torch.tensor(samples.image)
    labels = torch.tensor(samples.label)
    order = torch.randperm(len(labels), generator=generator)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield augment(images[chosen].float() / PIXEL_MAX, max_shift, generator), labels[chosen]


def augment(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Flip each image or not, and shift the batch by up to `max_shift` pixels each way."""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(3), images)
    top, left = torch.randint(0, 2 * max_shift + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (max_shift,) * 4)
    height, width = images.shape[2:]
    return padded[:, :, top : top + height, left : left + width]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an image network on Fashion-MNIST and write it as ONNX.")
    parser.add_argument("network", choices=sorted(EPOCHS))
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: var/networks/NETWORK")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="a device of PyTorch to train on, cuda for example")
    parser.add_argument("--qkv", choices=["fused", "separate"], default="fused", help="projections of the vit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
