"""Rotary position embedding (Su et al. 2021)."""

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    """Turn the first elements of the last axis of `x` (batch, heads, length, size) by their angles.

    Cosines and sines are (batch or 1, length, half the turned elements). Interleaved pairs are neighbours; otherwise an
    element's partner is half the turned elements further on. What lies behind the turned elements stays.
    """
    turned = 2 * cosines.shape[-1]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    moving, rest = x[..., :turned], x[..., turned:]
    first, second = (moving[..., 0::2], moving[..., 1::2]) if interleaved else moving.chunk(2, dim=-1)
    real, imaginary = first * cosines - second * sines, first * sines + second * cosines
    made = torch.stack((real, imaginary), dim=-1).flatten(-2) if interleaved else torch.cat((real, imaginary), dim=-1)
    return torch.cat((made, rest), dim=-1) if rest.shape[-1] else made


@operator("RotaryEmbedding")
def rotary_embedding(node: Node, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turn `x`, (batch, length, hidden) or (batch, heads, length, size), by angles of a table or of each position."""
    if positions is not None:
        cosines, sines = cosines[positions.long()], sines[positions.long()]
    return _turned(node, x, cosines, sines, heads=node.integer("num_heads", 0))


def _packed(node: Node) -> str | None:
    return "sequences packed into one batch are not taken apart" if node.integer("is_packed_batching", 0) else None


@operator("RotaryEmbedding", domain="com.microsoft", refuses=_packed)
def rotary_embedding_of_onnxruntime(node: Node, x: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn as the standard's operator does; one position is where the first element of the sequence stands."""
    if positions.numel() == 1:
        length = x.shape[1] if x.dim() == 3 else x.shape[2]
        positions = positions.reshape(1, 1) + torch.arange(length, device=positions.device)
    positions = positions.long()
    heads = node.integer("num_heads", 0)
    if x.dim() == 3 and not heads:
        heads = x.shape[2] // (node.integer("rotary_embedding_dim", 0) or 2 * cosines.shape[-1])
    scale = node.number("scale", 1.0)
    return _turned(node, x, scale * cosines[positions], scale * sines[positions], heads=heads)


def _turned(node: Node, x: Tensor, cosines: Tensor, sines: Tensor, *, heads: int) -> Tensor:
    interleaved = bool(node.integer("interleaved", 0))
    if x.dim() == 4:
        return rotate(x, cosines, sines, interleaved=interleaved)
    split = x.unflatten(2, (heads, -1)).transpose(1, 2)
    return rotate(split, cosines, sines, interleaved=interleaved).transpose(1, 2).flatten(2)
