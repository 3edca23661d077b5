"""The image networks as PyTorch modules: with the weights of their ONNX files, or untrained at another width."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this runs in another environment, by its path

from benchmarks.networks.architectures import Encoder, InvertedResidual, ResidualCnn, SeCnn, VisionTransformer, build
from benchmarks.networks.export import Signature, export, session

SIGNATURE = Signature(inputs=["image"], outputs=["logits"], dynamic={"image": {0: "batch"}})
TOLERANCE = 1e-3


class WeightsDifferError(Exception):
    """The module does not compute what the ONNX file computes."""


def example(count: int = 2) -> torch.Tensor:
    """Random images."""
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255


def write(network: nn.Module, path: Path) -> None:
    """Export and compare with PyTorch."""
    export(network.eval(), [(example(),), (example(1),)], SIGNATURE, path)


def trained(name: str, model: Path) -> nn.Module:
    """Give the network with the weights of an ONNX file; batch norms are folded there, so they are folded here."""
    network = fold_norms(build(name)).eval()
    proto = onnx.load(model)
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in proto.graph.initializer
    }
    with torch.no_grad():
        for module, node in zip(_layers(network), _weighted(proto, stored), strict=True):
            _copy(module, node, stored, proto)
        if isinstance(network, VisionTransformer):
            network.positions.copy_(stored[_positions(network, stored)])
        wanted = torch.from_numpy(session(model).run(None, {"image": example().numpy()})[0])
        error = float((network(example()) - wanted).abs().max() / wanted.abs().max())
    if error > TOLERANCE:
        raise WeightsDifferError(f"the PyTorch network differs from the ONNX file by {error:.1e}")
    return network


def built(name: str, ratio: float) -> nn.Module:
    """Give the untrained architecture at the width that is left when `ratio` of its channels, or heads and FFN, go."""
    if name == "residual_cnn":
        first, second, third = (_left(width, ratio) for width in (32, 64, 80))
        return fold_norms(ResidualCnn((first, second, third)))
    if name == "se_cnn":
        return fold_norms(_narrow_se_cnn(ratio))
    network = VisionTransformer()
    for layer in network.layers:
        assert isinstance(layer, Encoder)
        _narrow_encoder(layer, ratio)
    return network


def fold_norms(network: nn.Module) -> nn.Module:
    """Replace every convolution with a batch norm by one convolution with a bias."""
    for pair in [
        module for module in network.modules() if isinstance(module, nn.Sequential) and hasattr(module, "norm")
    ]:
        conv = pair.conv
        assert isinstance(conv, nn.Conv2d)
        pair.norm = nn.Identity()
        pair.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
        )  # fmt: skip
    return network


def _left(width: int, ratio: float) -> int:
    return max(1, round(width * (1 - ratio)))


def _narrow_se_cnn(ratio: float) -> nn.Module:
    network = SeCnn()
    widths = [_left(width, ratio) for width in (16, 16, 32, 32, 64, 64, 64)]
    blocks = [
        InvertedResidual(before, after, 2 if at in {1, 3} else 1, nn.ReLU if at < 2 else nn.Hardswish)
        for at, (before, after) in enumerate(pairwise(widths))
    ]
    squeezed, hidden = _left(32, ratio), _left(64, ratio)
    network.stem[0].conv = nn.Conv2d(1, widths[0], 3, 2, 1)
    network.stem[0].norm = nn.BatchNorm2d(widths[0])
    network.blocks = nn.Sequential(*blocks)
    network.squeeze[0].conv = nn.Conv2d(widths[-1], squeezed, 1)
    network.squeeze[0].norm = nn.BatchNorm2d(squeezed)
    network.hidden = nn.Sequential(nn.Linear(squeezed * 4 * 4, hidden), nn.Hardswish())
    network.head = nn.Linear(hidden, 10)
    return network


def _narrow_encoder(layer: Encoder, ratio: float) -> None:
    """Fewer heads of the same size, fewer neurons; the stream between the layers keeps its width."""
    attention, width = layer.attention, layer.norm1.normalized_shape[0]
    heads = _left(attention.heads, ratio)
    inner, hidden = width // attention.heads * heads, _left(4 * width, ratio)
    attention.heads = heads
    attention.project_in = nn.ModuleDict({"qkv": nn.Linear(width, 3 * inner)})
    attention.project_out = nn.Linear(inner, width)
    layer.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _layers(network: nn.Module) -> list[nn.Module]:
    """Give the modules with weights in the order in which they run."""
    ran: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        network(example())
    for hook in hooks:
        hook.remove()
    return ran


def _weighted(proto: onnx.ModelProto, stored: dict[str, torch.Tensor]) -> list[onnx.NodeProto]:
    kinds = {"Conv", "Gemm", "MatMul", "LayerNormalization"}
    return [node for node in proto.graph.node if node.op_type in kinds and node.input[1] in stored]


def _copy(module: nn.Module, node: onnx.NodeProto, stored: dict[str, torch.Tensor], proto: onnx.ModelProto) -> None:
    weight = stored[node.input[1]]
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _transposed(node)):
        weight = weight.T
    bias = stored[node.input[2]] if len(node.input) > 2 else _added(node, stored, proto)
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _added(node: onnx.NodeProto, stored: dict[str, torch.Tensor], proto: onnx.ModelProto) -> torch.Tensor:
    """Give the constant that is added to a node's output."""
    follower = next(other for other in proto.graph.node if node.output[0] in other.input)
    return stored[next(name for name in follower.input if name in stored)]


def _positions(network: VisionTransformer, stored: dict[str, torch.Tensor]) -> str:
    """Give the name of the learned positions: the one tensor of their shape."""
    shape = network.positions.shape
    return next(name for name, tensor in stored.items() if tensor.shape == shape)


def calibration_images(path: Path) -> Sequence[torch.Tensor]:
    """Give the calibration images in batches."""
    with np.load(path, allow_pickle=False) as stored:
        return torch.from_numpy(stored["image"]).split(64)
