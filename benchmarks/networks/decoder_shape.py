"""The sizes of a decoder, what its weights are called, and the angles of its rotary positions; no framework needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class DecoderShape:
    """A decoder of Llama's kind: RMSNorm before each part, rotary positions, grouped queries, SwiGLU, no biases.

    `hidden` is the width of the gated part; each of `kv_heads` keys and values serves heads / kv_heads queries; `context` is
    the largest number of positions.
    """

    vocabulary: int = 2048
    width: int = 384
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 64
    hidden: int = 960
    context: int = 2048
    rotary_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def query_width(self) -> int:
        """All heads beside each other."""
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        """All heads of keys, or of values, beside each other."""
        return self.kv_heads * self.head_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights by name; matrices are (outputs, inputs)."""
        width = self.width
        found: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, width)}
        for layer in range(self.layers):
            parts: dict[str, tuple[int, ...]] = {
                "attention_norm": (width,),
                "query": (self.query_width, width),
                "key": (self.key_width, width),
                "value": (self.key_width, width),
                "output": (width, self.query_width),
                "mlp_norm": (width,),
                "gate": (self.hidden, width),
                "up": (self.hidden, width),
                "down": (width, self.hidden),
            }
            found |= {f"layers.{layer}.{name}": shape for name, shape in parts.items()}
        return found | {"norm": (width,), "head": (self.vocabulary, width)}

    def angles(self) -> tuple[Floats, Floats]:
        """Cosines and sines [context, head_size / 2] of RoPE (arXiv:2104.09864), halves rotated against each other."""
        rates = self.rotary_base ** (-np.arange(0, self.head_size, 2, dtype=np.float64) / self.head_size)
        angles = np.outer(np.arange(self.context), rates)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    @classmethod
    def of(cls, weights: Weights, **rest: Any) -> "DecoderShape":
        """The sizes that weights have; `rest` names what they do not tell, such as heads."""
        vocabulary, width = weights["embedding"].shape
        head_size = rest.get("head_size", cls.head_size)
        return cls(
            vocabulary=vocabulary,
            width=width,
            layers=sum(name.endswith(".query") for name in weights),
            heads=weights["layers.0.query"].shape[0] // head_size,
            kv_heads=weights["layers.0.key"].shape[0] // head_size,
            hidden=weights["layers.0.gate"].shape[0],
            **rest,
        )
