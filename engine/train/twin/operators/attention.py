"""Attention of ONNX: Attention of operator sets 23 and later, with grouped heads, masks, caches and windows."""

import math
from dataclasses import dataclass

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@dataclass(frozen=True)
class Scores:
    """How scores come from products of queries and keys: a factor, and a limit that tanh bends them to, 0 for none."""

    scale: float
    softcap: float = 0.0


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn (batch, length, heads * size) into (batch, heads, length, size)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Turn (batch, heads, length, size) into (batch, length, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores) -> Tensor:
    """Give each query's mean of values (batch, heads, length, size).

    `bias` is added to the scores; where it is -inf for all of a query's keys, the query gets zeros. Keys and values may have
    fewer heads: each serves as many heads of queries in a row.
    """
    key, value = (_shared(each, query.shape[1]) for each in (key, value))
    if not scores.softcap:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scores.scale)
    raw = _limited(query @ key.mT * scores.scale, scores.softcap)
    return _weights(raw, bias) @ value


def causal_bias(query: int, key: int, offset: Tensor | int, like: Tensor) -> Tensor:
    """Give 0 where query i may see key j <= i + offset, -inf elsewhere; an offset for each sample gives a first axis."""
    return window_bias(query, key, offset, (-1, 0), like)


def window_bias(query: int, key: int, offset: Tensor | int, sides: tuple[int, int], like: Tensor) -> Tensor:
    """Give 0 for keys within so many positions before and after a query's own, i + offset; -1 leaves a side open."""
    queries = torch.arange(query, device=like.device).unsqueeze(1)
    if isinstance(offset, Tensor):
        offset = offset.to(like.device).reshape(-1, 1, 1, 1)
    distance = queries + offset - torch.arange(key, device=like.device)
    before, after = sides
    allowed = torch.ones_like(distance, dtype=torch.bool)
    if before >= 0:
        allowed &= distance <= before
    if after >= 0:
        allowed &= -distance <= after
    return barred(allowed, like)


def barred(allowed: Tensor, like: Tensor) -> Tensor:
    """Give 0 where something is allowed and -inf where it is not."""
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill(~allowed, -math.inf)


@operator("Attention")
def attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend; gives output, keys and values with those of the past before them, and the scores that the node asks for."""
    flat = query.dim() == 3
    if flat:
        query = split_heads(query, node.integer("q_num_heads", 1))
        key, value = (split_heads(each, node.integer("kv_num_heads", 1)) for each in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
    if lengths is not None and past_key is None:
        offset: Tensor | int = lengths - query.shape[2]
    else:
        offset = 0 if past_key is None else past_key.shape[2]
    bias = _bias(node, query, key.shape[2], mask, offset)
    if lengths is not None:
        known = torch.arange(key.shape[2], device=key.device) < lengths.to(key.device).reshape(-1, 1, 1, 1)
        bias = barred(known, query) if bias is None else bias + barred(known, query)
    scores = Scores(node.number("scale", 0.0) or query.shape[-1] ** -0.5, node.number("softcap", 0.0))
    shown = None
    if len(node.outputs) > 3 and node.outputs[3]:
        result, shown = _shown(node, query, key, value, bias, scores)
    else:
        result = attend(query, key, value, bias, scores)
    return join_heads(result) if flat else result, key, value, shown


def _bias(node: Node, query: Tensor, keys: int, mask: Tensor | None, offset: Tensor | int) -> Tensor | None:
    """Add up what the mask, causality and the window bar."""
    bias = None
    if mask is not None:
        bias = barred(mask, query) if mask.dtype == torch.bool else mask.to(query.dtype)
        if bias.shape[-1] < keys:
            bias = functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf)
        while bias.dim() < 2:
            bias = bias.unsqueeze(0)
    sides = (node.integer("left_window_size", -1), node.integer("right_window_size", -1))
    bars = []
    if node.integer("is_causal", 0):
        bars.append(causal_bias(query.shape[2], keys, offset, query))
    if max(sides) >= 0:
        bars.append(window_bias(query.shape[2], keys, offset, sides, query))
    for bar in bars:
        bias = bar if bias is None else bias + bar
    return bias


def _shown(
    node: Node, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Attend and give the scores at the stage that `qk_matmul_output_mode` names."""
    key, value = (_shared(each, query.shape[1]) for each in (key, value))
    raw = query @ key.mT * scores.scale
    limited = _limited(raw, scores.softcap) if scores.softcap else raw
    weights = _weights(limited, bias)
    stages = (raw, limited, limited if bias is None else limited + bias, weights)
    return weights @ value, stages[node.integer("qk_matmul_output_mode", 0)]


def _shared(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _limited(scores: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(scores / softcap)


def _weights(scores: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return scores.softmax(dim=-1)
    total = scores + bias
    hidden = (bias == -math.inf).all(dim=-1, keepdim=True)
    # A query without keys has no softmax; it is kept from the softmax, so that no NaN comes back as its slope either.
    return total.masked_fill(hidden, 0.0).softmax(dim=-1).masked_fill(hidden, 0.0)
