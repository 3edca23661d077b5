"""Old networks in an operator set that the tools can work with."""

import onnx
from onnx import version_converter

OLDEST = 13
"""The first set in which DequantizeLinear takes one scale per channel."""


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the network in at least set 13, or as it is where onnx cannot convert it."""
    used = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if used >= OLDEST:
        return model
    try:
        return version_converter.convert_version(model, OLDEST)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        print(f"stays in operator set {used}: {error}")
        return model
