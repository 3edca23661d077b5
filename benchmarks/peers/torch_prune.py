"""Prune with Torch-Pruning; runs in its environment.

Settings: `network`; `ratio`, the share of channels, or of heads and FFN neurons, that go; `importance` magnitude | taylor; `finetune`
decisions | distillation and `seconds`, where the network is trained afterwards.
It needs the PyTorch code of a network; the weights are read from the ONNX file.
"""

from pathlib import Path
from typing import Any

import torch
import torch_pruning
from image_networks import calibration_images, example, trained, write
from torch import nn
from torch.nn import functional
from torch_finetune import finetune


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Load, prune, export."""
    settings = request["settings"]
    network = trained(settings["network"], Path(request["model"]))
    before = sum(parameter.numel() for parameter in network.parameters())
    pruner = _pruner(network, settings)
    if settings["importance"] == "taylor":
        _gradients(network, Path(request["calibration"]))
    pruner.step()
    if settings["network"] == "vit":
        _correct_heads(network, pruner)
    network.zero_grad()
    steps = 0
    if "finetune" in settings:
        images = torch.cat(tuple(calibration_images(Path(request["calibration"]))))
        steps = finetune(network, trained(settings["network"], Path(request["model"])), images, settings)
    write(network, Path(request["out"]))
    return {
        "trained_steps": steps,
        "trained_seconds": settings.get("seconds"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "parameters_before": before,
    }


def _pruner(network: nn.Module, settings: dict[str, Any]) -> Any:
    importances = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    common: dict[str, Any] = {
        "importance": importances[settings["importance"]](),
        "ignored_layers": [network.head],
    }
    if settings["network"] != "vit":
        return torch_pruning.pruner.BasePruner(network, example(), pruning_ratio=settings["ratio"], **common)
    neurons = {layer.mlp[0]: settings["ratio"] for layer in network.layers}
    heads = {layer.attention.project_in["qkv"]: layer.attention.heads for layer in network.layers}
    return torch_pruning.pruner.BasePruner(
        network,
        example(),
        pruning_ratio=0.0,
        pruning_ratio_dict=neurons,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=settings["ratio"],
        **common,
    )


def _gradients(network: nn.Module, calibration: Path) -> None:
    """Gradients without labels: the network's own decisions stand for them."""
    for images in calibration_images(calibration):
        logits = network(images)
        functional.cross_entropy(logits, logits.detach().argmax(dim=1)).backward()


def _correct_heads(network: nn.Module, pruner: Any) -> None:
    """Tell the attention blocks how many heads they have now, as Torch-Pruning's own examples do."""
    for layer in network.layers:
        layer.attention.heads = pruner.num_heads[layer.attention.project_in["qkv"]]


torch.manual_seed(0)
