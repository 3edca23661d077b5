"""Attention as onnxruntime has it beside the standard's: of encoders, with packed weights, and of decoders with grouped heads."""

import math

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.attention import (
    Scores,
    attend,
    barred,
    causal_bias,
    join_heads,
    split_heads,
    window_bias,
)
from engine.train.twin.operators.rotary import rotate
from engine.train.twin.table import operator

_CONTRIB = "com.microsoft"
_MASKED = -10000.0


def _uses(node: Node, places: dict[int, str]) -> str | None:
    for place, what in places.items():
        if len(node.inputs) > place and node.inputs[place]:
            return f"it reads {what}"
    return None


def _refuses_attention(node: Node) -> str | None:
    if node.integer("do_rotary", 0):
        return "its rotary embedding has no table of angles"
    if node.integer("past_present_share_buffer", 0):
        return "keys and values of the past share one buffer with the present"
    return None


@operator("Attention", domain=_CONTRIB, refuses=_refuses_attention)
def packed_attention(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend with queries, keys and values from one product with `weight` (hidden, sizes of the three together)."""
    heads = node.integer("num_heads", 1)
    product = x @ weight if bias is None else x @ weight + bias
    sizes = node.integers("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    query, key, value = (split_heads(each, heads) for each in product.split(sizes, dim=-1))
    if past is not None:
        key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
    result = _attended(node, (query, key, value), mask, added)
    present = torch.stack((key, value)) if len(node.outputs) > 1 and node.outputs[1] else None
    return join_heads(result), present


@operator(
    "MultiHeadAttention",
    domain=_CONTRIB,
    refuses=lambda node: _uses(node, {8: "a buffer for the past", 9: "beams that share a past"}),
)
def multi_head_attention(
    node: Node,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend with queries, keys and values that may come packed, with a bias for the three of them together."""
    heads = node.integer("num_heads", 1)
    parts = [each if each.dim() == 4 else split_heads(each, heads) for each in _three(query, key, value)]
    if bias is not None:
        sizes = [part.shape[1] * part.shape[3] for part in parts]
        for index, each in enumerate(bias.split(sizes)):
            parts[index] = parts[index] + each.reshape(heads, 1, -1)
    if past_key is not None and past_value is not None:
        parts[1], parts[2] = torch.cat((past_key, parts[1]), dim=2), torch.cat((past_value, parts[2]), dim=2)
    return join_heads(_attended(node, (parts[0], parts[1], parts[2]), mask, added)), parts[1], parts[2]


def _refuses_grouped(node: Node) -> str | None:
    if node.integer("smooth_softmax", 0) > 0:
        return "its softmax has a sink"
    if node.integer("kv_cache_bit_width", 0):
        return "its cache is quantised"
    return _uses(
        node, {11: "a sink for each head", 12: "scales of a quantised cache", 13: "scales of a quantised cache"}
    )


@operator("GroupQueryAttention", domain=_CONTRIB, host=(5, 6), refuses=_refuses_grouped)
def group_query_attention(
    node: Node,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: Tensor,
    cosines: Tensor | None = None,
    sines: Tensor | None = None,
    positions: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend to what is not later, with fewer heads of keys and values than of queries (Ainslie et al. 2023).

    `last` (batch) is the number of each sample's last key, `total` the length with the past, which all samples share; samples
    that are shorter end in padding.
    """
    heads, groups = node.integer("num_heads", 1), node.integer("kv_num_heads", 1)
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * groups)
        query, key, value = query.split([heads * size, groups * size, groups * size], dim=-1)
    query, key, value = split_heads(query, heads), split_heads(key, groups), split_heads(value, groups)
    length = query.shape[2]
    before = int(total) - length
    if node.integer("do_rotary", 0) and cosines is not None and sines is not None:
        places = torch.arange(before, before + length, device=query.device).unsqueeze(0)
        places = places if positions is None else positions.long()
        angles = (cosines[places], sines[places])
        interleaved = bool(node.integer("rotary_interleaved", 0))
        query, key = (rotate(each, *angles, interleaved=interleaved) for each in (query, key))
    if past_key is not None and past_value is not None and before:
        key, value = (
            torch.cat((past[:, :, :before], new), dim=2) for past, new in ((past_key, key), (past_value, value))
        )
    window = node.integer("local_window_size", -1)
    bias = window_bias(length, key.shape[2], before, (window - 1 if window > 0 else -1, 0), query)
    if bool((last + 1 < int(total)).any()):
        known = torch.arange(key.shape[2]) <= last.reshape(-1, 1, 1, 1)
        bias = bias + barred(known.to(query.device), query)
    if added is not None:
        bias = bias + added
    scores = Scores(node.number("scale", 0.0) or query.shape[-1] ** -0.5, node.number("softcap", 0.0))
    return join_heads(attend(query, key, value, bias, scores)), key, value


def _attended(node: Node, parts: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, added: Tensor | None) -> Tensor:
    query, key, value = parts
    bias = None
    if mask is not None:
        bias = _mask_bias(mask, query, key.shape[2], node.number("mask_filter_value", _MASKED))
    if node.integer("unidirectional", 0):
        later = causal_bias(query.shape[2], key.shape[2], key.shape[2] - query.shape[2], query)
        bias = later if bias is None else bias + later
    if added is not None:
        bias = added if bias is None else bias + added
    return attend(query, key, value, bias, Scores(node.number("scale", 0.0) or 1 / math.sqrt(query.shape[-1])))


def _mask_bias(mask: Tensor, query: Tensor, keys: int, masked: float) -> Tensor:
    """Give what a mask adds to scores (batch, heads, queries, keys).

    A mask is (batch, keys), (batch, queries, keys) or (batch, 1, rows, rows), and 0 where it hides; or it gives the end of each
    sample's keys (batch), after which those of its beginnings may follow (2 * batch).
    """
    batch = query.shape[0]
    places = torch.arange(keys, device=query.device)
    if mask.dim() == 1 and len(mask) in {batch, 2 * batch}:
        ends = mask[:batch].reshape(-1, 1, 1, 1)
        shown = places < ends
        if len(mask) == 2 * batch:
            shown &= places >= mask[batch:].reshape(-1, 1, 1, 1)
    elif mask.dim() == 1:
        # Lengths of keys, then where queries and keys of each sample begin in a packed batch, which this is not.
        shown = places < mask[:batch].reshape(-1, 1, 1, 1)
    elif mask.dim() == 2:
        shown = mask[:, None, None, :keys] > 0
    elif mask.dim() == 3:
        shown = mask[:, None] > 0
    else:
        begin = keys - query.shape[2]
        shown = mask[:, :, begin : begin + query.shape[2], :keys] > 0
    return torch.zeros_like(shown, dtype=query.dtype).masked_fill(~shown, masked)


def _three(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values apart where they came as one, (batch, length, heads, 3 or 2, size)."""
    if query.dim() == 5:
        first, second, third = (query[:, :, :, index].transpose(1, 2) for index in range(3))
        return first, second, third
    if key is not None and key.dim() == 5:
        return query, key[:, :, :, 0].transpose(1, 2), key[:, :, :, 1].transpose(1, 2)
    assert key is not None
    assert value is not None
    return query, key, value
