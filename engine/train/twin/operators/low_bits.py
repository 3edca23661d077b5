"""Weights of a few bits as onnxruntime packs them: MatMulNBits and GatherBlockQuantized."""

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

_CONTRIB = "com.microsoft"


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Take the numbers of `bits` bits (2, 4 or 8) out of bytes along the last axis, the lowest bits first."""
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    return (packed.unsqueeze(-1) >> shifts & (1 << bits) - 1).flatten(-2)


def block_weight(
    packed: Tensor, scales: Tensor, zero_points: Tensor | None, *, rows: int, columns: int, bits: int, block: int
) -> Tensor:
    """Give the weight (rows, columns) of MatMulNBits.

    `packed` is (rows, blocks, bytes of a block), `scales` (rows, blocks). Zero points are packed likewise, each row filled to
    whole bytes, or are floats; without any, they are the middle of the range.
    """
    blocks = -(-columns // block)
    whole = unpacked(packed.reshape(rows, blocks, -1), bits)[..., :block].to(scales.dtype)
    scales = scales.reshape(rows, blocks, 1)
    if zero_points is None:
        whole = whole - 2 ** (bits - 1)
    elif zero_points.is_floating_point():
        whole = whole - zero_points.reshape(rows, blocks, 1)
    else:
        middle = unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks]
        whole = whole - middle.to(scales.dtype).unsqueeze(-1)
    return (whole * scales).reshape(rows, blocks * block)[:, :columns]


def _is_regrouped(node: Node) -> str | None:
    return "its columns are regrouped (g_idx)" if len(node.inputs) > 4 and node.inputs[4] else None


@operator("MatMulNBits", domain=_CONTRIB, refuses=_is_regrouped)
def matmul_nbits(
    node: Node,
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply by a weight of a few bits; slopes go to the input, the scales and the bias."""
    del groups
    weight = block_weight(
        packed,
        scales,
        zero_points,
        rows=node.integer("N", 0),
        columns=node.integer("K", 0),
        bits=node.integer("bits", 4),
        block=node.integer("block_size", 32),
    )
    return functional.linear(x, weight.to(x.dtype), bias)


def _is_turned(node: Node) -> str | None:
    if node.integer("gather_axis", 0) != 0 or node.integer("quantize_axis", 1) not in {1, -1}:
        return "it gathers or rounds along another axis than rows and columns"
    return None


@operator("GatherBlockQuantized", domain=_CONTRIB, refuses=_is_turned)
def gather_block_quantized(
    node: Node, table: Tensor, places: Tensor, scales: Tensor, zero_points: Tensor | None = None
) -> Tensor:
    """Look rows up in a table of whole numbers with a scale for each block along the last axis.

    Bytes hold numbers of 2, 4 or 8 bits and count from the middle of the range; types of 4 bits come unpacked and count from 0.
    """
    bits, block = node.integer("bits", 4), node.integer("block_size", 128)
    places = places.long()
    rows, factors = table[places], scales[places]
    zeros = None if zero_points is None else zero_points[places]
    if node.input_types and node.input_types[0] is not None and node.input_types[0].name == "UINT8":
        rows = unpacked(rows, bits)
        zeros = None if zeros is None else unpacked(zeros, bits)[..., : factors.shape[-1]]
        middle = 2 ** (bits - 1)
    else:
        middle = 0
    shift = factors.new_full((), middle) if zeros is None else zeros.to(factors.dtype)
    shift = shift if zeros is None else shift.repeat_interleave(block, dim=-1)[..., : rows.shape[-1]]
    factors = factors.repeat_interleave(block, dim=-1)[..., : rows.shape[-1]]
    return (rows.to(factors.dtype) - shift) * factors
