"""Activations with a bias, and others that onnxruntime has beside the standard's."""

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

_CONTRIB = "com.microsoft"


@operator("Gelu", domain=_CONTRIB)
def gelu(node: Node, x: Tensor) -> Tensor:
    """Give x times the normal distribution's share below it (Hendrycks and Gimpel 2016)."""
    del node
    return functional.gelu(x)


@operator("BiasGelu", domain=_CONTRIB)
def bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    """Give the Gelu of a sum."""
    del node
    return functional.gelu(x + bias)


@operator("FastGelu", domain=_CONTRIB)
def fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give the Gelu of a sum by its approximation with tanh."""
    del node
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=_CONTRIB)
def quick_gelu(node: Node, x: Tensor) -> Tensor:
    """Give x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(node.number("alpha", 1.702) * x)


@operator("SwiGLU")
def swiglu(node: Node, gate: Tensor, x: Tensor) -> Tensor:
    """Give gate * sigmoid(alpha * gate) * x (Shazeer 2020)."""
    return gate * torch.sigmoid(node.number("alpha", 1.0) * gate) * x


@operator("BiasAdd", domain=_CONTRIB)
def bias_add(node: Node, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """Add a bias and a second tensor."""
    del node
    return x + bias + skip


@operator("BiasSoftmax", domain=_CONTRIB)
def bias_softmax(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    """Give the softmax over `axis` and those after it of a sum."""
    axis = node.integer("axis", 1) % x.dim()
    if not node.integer("is_inner_broadcast", 1):
        # The bias is then laid along the outermost axes: one for all rows of a group.
        bias = bias.reshape(*bias.shape[:1], *[1] * (x.dim() - bias.dim()), *bias.shape[1:])
    total = x + bias
    return total.flatten(axis).softmax(dim=-1).reshape(total.shape)


@operator("EmbedLayerNormalization", domain=_CONTRIB)
def embed_layer_normalization(
    node: Node,
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Normalise the sum of embeddings of words, positions and segments; gives how many words each mask shows, and the sum."""
    total = functional.embedding(words.long(), word_table)
    if positions is None:
        total = total + position_table[: words.shape[1]]
    else:
        total = total + functional.embedding(positions.long(), position_table)
    if segments is not None and segment_table is not None:
        total = total + functional.embedding(segments.long(), segment_table)
    result = functional.layer_norm(total, total.shape[-1:], scale, bias, node.number("epsilon", 1e-12))
    shown = words.new_zeros(len(words)) if mask is None else mask.sum(dim=1)
    return result, shown.to(torch.int32), total
