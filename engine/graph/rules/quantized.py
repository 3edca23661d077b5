"""Quantize and dequantize: labels pass, scales by channel follow."""

import onnx_ir as ir

from engine.graph.execution import Execution
from engine.graph.rules.registry import Rules, follows, listed


@follows(0)
def quantize(run: Execution, node: ir.Node) -> None:
    """Pass labels of activations; a dequantized weight is handled where it is used."""
    if run.constant(node.inputs[0]):
        return
    found = run.label(node.inputs[0])
    if found is not None:
        run.scales(node, found)
        run.set(node, found)


RULES: Rules = listed(quantize, "QuantizeLinear", "DequantizeLinear")
