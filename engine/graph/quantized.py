"""Which operators belong to a quantized network: the one list of them, by operator type alone, as stored nodes have it."""

import re

import onnx_ir as ir

# A pair of these stands where a number changes between float and integer.
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Kernels whose operands are integers: ConvInteger, MatMulIntegerToFloat, QLinearConv, QGemm, QAttention and their siblings.
_COMPUTES = re.compile(
    r"QLinear\w+|QOrdered\w+|QGemm|QAttention|QEmbedLayerNormalization|\w*Integer(16|ToFloat)?|DynamicQuantize(LSTM|MatMul)"
)
# Kernels that read weights of few bits and compute in float, or in integers that they make themselves.
_STORES = re.compile(r"MatMulNBits\w*|MatMulBnb4|MatMulFpQ4|MatMulBlockQuantized\w+|GatherBlockQuantized|QMoE")
_CONVERTS = re.compile(r"(Dynamic)?QuantizeLinear|DequantizeLinear|(Deq|Q)uantize(BFP|WithOrder)")
_SMALL = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})


def is_quantized(op_type: str) -> bool:
    """Say whether an operator belongs to a quantized network: it computes in integers, stores them, or converts."""
    return any(kind.fullmatch(op_type) is not None for kind in (_CONVERTS, _COMPUTES, _STORES))


def computes_in_integers(op_type: str) -> bool:
    """Say whether an operator multiplies or moves integers that stand for real numbers."""
    return _COMPUTES.fullmatch(op_type) is not None


def first_quantized(model: ir.Model) -> ir.Node | None:
    """Give the first node that shows a network to be quantized, at least in part; bodies of If and Loop included."""
    return next((node for node in model.graph.all_nodes() if is_quantized(node.op_type)), None)


def holds_integer_weights(node: ir.Node) -> bool:
    """Say whether a node reads weights that are stored in 8 bits or fewer, a Cast that restores them included."""
    if node.op_type != "Cast":
        return node.op_type == "DequantizeLinear" or _STORES.fullmatch(node.op_type) is not None
    value = node.inputs[0]
    constant = value.const_value if value is not None and value.is_initializer() else None
    return constant is not None and constant.dtype in _SMALL


def reads_integer_weights(node: ir.Node) -> bool:
    """Say whether a node reads stored integers through what restores them: then its weights are not in float."""
    makers = (value.producer() for value in node.inputs if value is not None)
    restored = (maker.inputs[0] for maker in makers if maker is not None and holds_integer_weights(maker))
    return any(value is not None and value.is_initializer() for value in restored)
