"""Train a small decoder on manual pages and write it as ONNX, as a folder that onnxruntime-genai loads.

    python benchmarks/networks/decoder.py [text|train|export] [--out DIR] [--text DIR] [--steps N] [--device cuda]

Without a stage, all three follow each other; each finds what the one before it wrote in DIR (default var/networks/decoder):

* `text` needs the package tokenizers: `tokenizer.json`, `tokenizer_config.json`, `tokens.npz` (uint16: `training`, `held_out`);
* `train` needs only torch and numpy, so it may run on another machine: `weights.npz` (float16), `training.json`;
* `export` needs onnx and onnxruntime: `model.onnx` in the form of onnxruntime-genai's builder with `genai_config.json`,
  `standard.onnx` in the operators of opset 23, `data.npz` (`input_ids`, and the next tokens as `label`), `network.json`.
"""

# ruff: noqa: PLC0415  # each stage imports what it alone needs
import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script can be started by its path

from benchmarks.networks.decoder_shape import DecoderShape

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 6000
BATCH = 64
LENGTH = 256
PEAK_RATE = 1.5e-3
WARM_UP = 200
WEIGHT_DECAY = 0.1
LARGEST_GRADIENT = 1.0
HELD_OUT_BATCHES = 8

TEXTS = {"training": (128,), "held_out": (96, 256)}
"""Texts of the dataset: those to calibrate with from the training text, those to choose and to judge by from the held-out one."""

SAMPLE_LENGTH = 128
TOLERANCE = 1e-4
"""Largest accepted difference of the written network to PyTorch, relative to the largest logit."""


def main() -> None:
    """Entry point of the script."""
    options = _arguments()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    stages = {"text": prepare_text, "train": train, "export": export}
    for name, stage in stages.items():
        if options.stage in {None, name}:
            stage(options, folder)


def prepare_text(options: argparse.Namespace, folder: Path) -> None:
    """Read the manual pages, learn a tokenizer from those to train on, and write all as tokens."""
    from benchmarks.networks import byte_pairs, manual_pages

    try:
        pages = manual_pages.load(options.text)
    except manual_pages.TextMissingError as error:
        sys.exit(str(error))
    tokenizer = byte_pairs.learn(pages.training)
    byte_pairs.save(tokenizer, folder)
    tokens = {name: byte_pairs.encode(tokenizer, getattr(pages, name)) for name in ("training", "held_out")}
    np.savez_compressed(folder / "tokens.npz", allow_pickle=False, **tokens)
    told = {name: f"{len(array):,} tokens" for name, array in tokens.items()}
    print(f"{len(pages.training)} pages to train on, {len(pages.held_out)} held out; {told}", flush=True)


def train(options: argparse.Namespace, folder: Path) -> None:
    """Train with AdamW, a warm-up and a cosine down to a tenth of the rate, in bfloat16 on a GPU."""
    import torch
    from torch.nn import functional

    from benchmarks.networks.decoder_architecture import Decoder

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    tokens = np.load(folder / "tokens.npz")
    training = torch.tensor(tokens["training"].astype(np.int64))
    network = Decoder(DecoderShape(layers=options.layers)).to(device)
    matrices = [each for each in network.parameters() if each.ndim > 1]
    vectors = [each for each in network.parameters() if each.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    generator = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()
    for step in range(options.steps):
        starts = torch.randint(0, len(training) - LENGTH - 1, (options.batch, 1), generator=generator)
        texts = training[starts + torch.arange(LENGTH + 1)].to(device)
        with precision:
            logits = network(texts[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), texts[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == options.steps:
            elapsed = time.monotonic() - started
            print(f"step {step + 1}/{options.steps}: {loss.item():.3f} nats per token, {elapsed:.0f} s", flush=True)
    weights = {name: array.astype(np.float16) for name, array in network.arrays().items()}
    np.savez_compressed(folder / "weights.npz", allow_pickle=False, **weights)
    network.load(weights)
    with torch.no_grad():
        losses = [
            functional.cross_entropy(network(batch[:, :-1].to(device)).flatten(0, 1), batch[:, 1:].flatten().to(device))
            for batch in (torch.tensor(each) for each in _held_out(tokens["held_out"]))
        ]
    facts = {
        "seed": options.seed,
        "steps": options.steps,
        "tokens_per_step": options.batch * LENGTH,
        "device": options.device,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
        "training_nats_per_token": round(loss.item(), 4),
        "held_out_nats_per_token": round(sum(each.item() for each in losses) / len(losses), 4),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def export(_options: argparse.Namespace, folder: Path) -> None:
    """Write the trained decoder in both forms, see that each says what PyTorch says, and write what judges it."""
    import onnx

    from benchmarks.networks import byte_pairs, genai_folder
    from benchmarks.networks.decoder_graph import decoder

    weights = dict(np.load(folder / "weights.npz"))
    tokens = np.load(folder / "tokens.npz")
    shape = DecoderShape.of(weights)
    for form, name in (("genai", "model.onnx"), ("opset23", "standard.onnx")):
        onnx.save(decoder(weights, shape, form), folder / name)
        _compare(folder / name, weights, shape, next(_held_out(tokens["held_out"]))[:2, :-1])
    genai_folder.write(shape, byte_pairs.END_OF_TEXT_ID, folder)
    np.savez_compressed(folder / "data.npz", allow_pickle=False, **_samples(tokens))
    facts: dict[str, Any] = {
        "network": "decoder",
        **json.loads((folder / "training.json").read_text()),
        "parameters": sum(array.size for array in weights.values()),
        "bytes": (folder / "model.onnx").stat().st_size,
    }
    (folder / "network.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def feed(inputs: np.ndarray, shape: DecoderShape, names: set[str]) -> dict[str, np.ndarray]:
    """What such a decoder takes for tokens [N, T] with nothing before them."""
    empty = np.zeros((len(inputs), shape.kv_heads, 0, shape.head_size), np.float32)
    given = {
        "input_ids": inputs,
        "attention_mask": np.ones_like(inputs),
        "position_ids": np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape).copy(),
    }
    return {name: given.get(name, empty) for name in names}


def _compare(path: Path, weights: dict[str, np.ndarray], shape: DecoderShape, inputs: np.ndarray) -> None:
    import torch

    from benchmarks.networks.decoder_architecture import Decoder
    from benchmarks.networks.export import session

    network = Decoder(shape)
    network.load(weights)
    with torch.no_grad():
        expected = network(torch.tensor(inputs)).numpy()
    running = session(path)
    got = running.run(["logits"], feed(inputs, shape, {each.name for each in running.get_inputs()}))[0]
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise ValueError(f"{path.name} differs from PyTorch by {error:.1e} of the largest logit")


def _samples(tokens: Any) -> dict[str, np.ndarray]:
    """Texts with their next tokens as labels: the first calibrate, others that were held out choose, and yet others judge."""
    found = []
    for name, counts in TEXTS.items():
        starts = np.linspace(0, len(tokens[name]) - SAMPLE_LENGTH - 1, sum(counts)).astype(np.int64)
        some = tokens[name].astype(np.int64)[starts[:, None] + np.arange(SAMPLE_LENGTH + 1)]
        # Each part has texts from everywhere.
        found.append(np.random.default_rng(0).permutation(some))
    texts = np.concatenate(found)
    part = np.repeat(np.arange(3, dtype=np.int8), [count for counts in TEXTS.values() for count in counts])
    return {"input_ids": texts[:, :-1], "label": texts[:, 1:], "part": part}


def _held_out(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Batches [16, LENGTH + 1] spread over the held-out text."""
    starts = np.linspace(0, len(tokens) - LENGTH - 1, 16 * HELD_OUT_BATCHES).astype(np.int64)
    for some in np.split(starts, HELD_OUT_BATCHES):
        yield tokens.astype(np.int64)[some[:, None] + np.arange(LENGTH + 1)]


def _rate(step: int, steps: int) -> float:
    """Share of the peak rate at a step."""
    warm_up = min(WARM_UP, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small decoder on manual pages and write it as ONNX.")
    parser.add_argument("stage", nargs="?", choices=["text", "train", "export"], help="default: all of them")
    parser.add_argument("--out", type=Path, metavar="DIR", default=REPOSITORY / "var" / "networks" / "decoder")
    parser.add_argument(
        "--text", type=Path, metavar="DIR", help="folder with unpacked packages, not the installed ones"
    )
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N")
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help=f"texts of {LENGTH} tokens in a step")
    parser.add_argument("--layers", type=int, default=DecoderShape.layers, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="a device of PyTorch to train on, cuda for example")
    return parser.parse_args()


if __name__ == "__main__":
    main()
