"""Fine-tune a pruned image network in PyTorch as its author would who has no labels: for some seconds, on its own images.

Augmentation, optimizer and schedule are those that the networks were trained with (benchmarks/networks/train.py), at a lower rate; the
batch norms are folded, as in the ONNX file. It runs in the environment of Torch-Pruning.
"""

import time
from collections.abc import Callable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.architectures import PIXEL_MAX
from benchmarks.networks.train import BATCH, MAX_SHIFT, WEIGHT_DECAY, augment

PEAK_RATE = 2e-3
WARM_UP = 0.05
TEMPERATURE = 4.0


def decisions(answer: Tensor, original: Tensor) -> Tensor:
    """Cross-entropy with the original's own decisions as labels."""
    return functional.cross_entropy(answer, original.argmax(dim=1))


def distillation(answer: Tensor, original: Tensor) -> Tensor:
    """Divergence from the original's soft answers (Hinton et al., Distilling the Knowledge in a Neural Network, 2015)."""
    log, soft = (functional.log_softmax(each / TEMPERATURE, dim=1) for each in (answer, original))
    return functional.kl_div(log, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"decisions": decisions, "distillation": distillation}


def finetune(network: nn.Module, original: nn.Module, images: Tensor, settings: dict[str, Any]) -> int:
    """Train in place for `seconds` towards the original by the loss that `finetune` names; give the number of steps."""
    generator = torch.Generator().manual_seed(0)
    loss, shift = LOSSES[settings["finetune"]], MAX_SHIFT[settings["network"]]
    # The optimizer's steps are as large for small weights as for others; those that take pixels of 0..255 are 255 times smaller.
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight *= PIXEL_MAX
    network.train().to(memory_format=torch.channels_last)
    original.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps, started, order = 0, time.monotonic(), torch.empty(0, dtype=torch.int64)
    while (done := (time.monotonic() - started) / settings["seconds"]) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, done / WARM_UP + 1e-3) * (1 + cos(pi * done)) / 2
        if len(order) == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:BATCH], order[BATCH:]
        seen = augment(images[chosen].float(), shift, generator).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = original(seen)
        optimizer.zero_grad()
        loss(network(seen / PIXEL_MAX), wanted).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps += 1
    with torch.no_grad():
        first.weight /= PIXEL_MAX
    network.to(memory_format=torch.contiguous_format)
    return steps
