"""Conversion to a later operator set; whoever asks for it has to see that the outputs stayed (the pipeline does)."""

import onnx
import onnx_ir as ir

from engine.graph import io


def upgrade(model: ir.Model, version: int) -> bool:
    """Convert to a later operator set in place where that is possible; say whether the network has it now."""
    if io.opset(model) >= version:
        return True
    if io.weight_bytes(model) >= io.SINGLE_FILE_BYTES:
        return False
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), version)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return False
    model.graph = ir.from_proto(converted).graph
    return True
