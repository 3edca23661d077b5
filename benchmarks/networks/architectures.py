"""The three image networks: a residual CNN, a depthwise CNN with squeeze-excite, a vision transformer.

Each takes float32 images [N, 1, 28, 28] with values 0..1 while it trains. `fold_pixel_scale` then moves the factor 1/255
into the first convolution, so that the exported network takes the values 0..255 that the dataset stores. It is a pure
scale: with a shift, the zeros that a convolution pads with would no longer mean the same.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
PIXEL_MAX = 255.0

QkvStyle = Literal["fused", "separate"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn(channels_in, channels, 3, stride)
        self.conv2 = _conv_bn(channels, channels, 3)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else _conv_bn(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [N, channels, H / stride, W / stride]."""
        hidden = functional.relu(self.conv1(x))
        return functional.relu(self.conv2(hidden) + self.shortcut(x))


class ResidualCnn(nn.Module):
    """Stem, three stages of residual blocks at 28x28, 14x14 and 7x7, global average pool, Gemm."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 80), blocks: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.stem = _conv_bn(1, widths[0], 3)
        stages: list[nn.Module] = []
        channels_in = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(channels_in, width, stride))
                channels_in = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels_in, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 10]."""
        features = self.stages(functional.relu(self.stem(image)))
        logits: Tensor = self.head(torch.flatten(self.pool(features), 1))
        return logits


class SqueezeExcite(nn.Module):
    """Channel gates computed from the global average, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` times its gates."""
        gates = self.expand(functional.relu(self.reduce(self.pool(x))))
        return x * functional.hardsigmoid(gates)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-excite, project 1x1; a shortcut where the shape stays."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        hidden = channels_in * 4
        self.body = nn.Sequential(
            _conv_bn(channels_in, hidden, 1),
            activation(),
            _conv_bn(hidden, hidden, 3, stride, groups=hidden),
            activation(),
            SqueezeExcite(hidden),
            _conv_bn(hidden, channels, 1),
        )
        self.keeps_shape = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [N, channels, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.keeps_shape else y


class SeCnn(nn.Module):
    """A small MobileNetV3: ReLU in the first stage, hard-swish after it, and a head that flattens a 4x4 map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_bn(1, 16, 3, 2), nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 16, 1, nn.ReLU),
            InvertedResidual(16, 32, 2, nn.ReLU),
            InvertedResidual(32, 32, 1, nn.Hardswish),
            InvertedResidual(32, 64, 2, nn.Hardswish),
            InvertedResidual(64, 64, 1, nn.Hardswish),
            InvertedResidual(64, 64, 1, nn.Hardswish),
        )
        self.squeeze = nn.Sequential(_conv_bn(64, 32, 1), nn.Hardswish())
        self.hidden = nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.Hardswish())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 10]."""
        features = self.squeeze(self.blocks(self.stem(image)))
        logits: Tensor = self.head(self.hidden(torch.flatten(features, 1)))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one projection (`fused`) or from three."""

    def __init__(self, width: int, heads: int, qkv: QkvStyle) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        parts = {"qkv": 3 * width} if qkv == "fused" else {"q": width, "k": width, "v": width}
        self.project_in = nn.ModuleDict({name: nn.Linear(width, size) for name, size in parts.items()})
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mixed tokens [N, tokens, width]."""
        projected = [projection(x) for projection in self.project_in.values()]
        parts = projected if len(projected) > 1 else projected[0].chunk(3, dim=-1)
        query, key, value = (self._split_heads(part) for part in parts)
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        mixed: Tensor = self.project_out((weights @ value).transpose(1, 2).flatten(2))
        return mixed

    def _split_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, qkv: QkvStyle) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, tokens, width]."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches of 4x4, learned positions, mean of the tokens at the end (no class token)."""

    def __init__(self, qkv: QkvStyle = "fused", width: int = 64, layers: int = 5, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.layers = nn.Sequential(*(Encoder(width, heads, qkv) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 10]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


def build(name: str, qkv: QkvStyle = "fused") -> nn.Module:
    """The network called `name`, freshly initialised."""
    if name == "residual_cnn":
        return ResidualCnn()
    if name == "se_cnn":
        return SeCnn()
    return VisionTransformer(qkv)


def fold_pixel_scale(network: nn.Module) -> None:
    """Make `network`, trained on values 0..1, take values 0..255 instead: its first convolution absorbs 1/255."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight /= PIXEL_MAX


def _conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels)))
