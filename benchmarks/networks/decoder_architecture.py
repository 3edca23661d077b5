"""The decoder as a PyTorch module, for training; `decoder_graph` writes the same one as ONNX."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.decoder_shape import DecoderShape, Weights


class Decoder(nn.Module):
    """Logits of the next token at every position of a text."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.weights = nn.ParameterDict(
            {_key(name): nn.Parameter(_initial(name, size, shape.layers)) for name, size in shape.shapes().items()}
        )
        cosines, sines = shape.angles()
        self.register_buffer("cosines", torch.tensor(cosines), persistent=False)
        self.register_buffer("sines", torch.tensor(sines), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [N, T, vocabulary] of tokens [N, T]."""
        x = functional.embedding(tokens, self._weight("embedding"))
        for layer in range(self.shape.layers):
            x = x + self._attention(self._norm(x, f"layers.{layer}.attention_norm"), f"layers.{layer}")
            x = x + self._gated(self._norm(x, f"layers.{layer}.mlp_norm"), f"layers.{layer}")
        return functional.linear(self._norm(x, "norm"), self._weight("head"))

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        return {name: self._weight(name).detach().cpu().numpy() for name in self.shape.shapes()}

    def load(self, weights: Weights) -> None:
        """Take weights that `arrays` gave."""
        with torch.no_grad():
            for name in self.shape.shapes():
                self._weight(name).copy_(torch.tensor(np.asarray(weights[name], np.float32)))

    def _attention(self, x: Tensor, prefix: str) -> Tensor:
        query, key, value = (
            torch.unflatten(functional.linear(x, self._weight(f"{prefix}.{name}")), -1, (-1, self.shape.head_size))
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(
            self._rotated(query).transpose(1, 2),
            self._rotated(key).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
        return functional.linear(mixed.transpose(1, 2).flatten(2), self._weight(f"{prefix}.output"))

    def _gated(self, x: Tensor, prefix: str) -> Tensor:
        gate = functional.silu(functional.linear(x, self._weight(f"{prefix}.gate")))
        up = functional.linear(x, self._weight(f"{prefix}.up"))
        return functional.linear(gate * up, self._weight(f"{prefix}.down"))

    def _rotated(self, x: Tensor) -> Tensor:
        """`x` [N, T, heads, head_size] turned by the angles of its positions."""
        cosines, sines = (
            table[: x.shape[1], None].to(x.dtype) for table in (self.get_buffer("cosines"), self.get_buffer("sines"))
        )
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (self.shape.width,), self._weight(name), self.shape.epsilon)

    def _weight(self, name: str) -> Tensor:
        return self.weights[_key(name)]


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name may hold no dot


def _initial(name: str, size: tuple[int, ...], layers: int) -> Tensor:
    """Ones for norms, small normal numbers else; what adds to the residual is smaller the more of it there is."""
    if len(size) == 1:
        return torch.ones(size)
    adds = name.endswith((".output", ".down"))
    return torch.randn(size) * (0.02 / math.sqrt(2 * layers) if adds else 0.02)
