"""Conversion to a later operator set; whoever asks for it has to see that the outputs stayed (the pipeline does)."""

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from engine.graph import io, runtime_operators

# A domain that nobody uses; the converter leaves its operators as they are.
_OUT_OF_SIGHT = "onnxpress.out-of-sight"
_STANDARD = frozenset({"", "ai.onnx"})


def upgrade(model: ir.Model, version: int) -> bool:
    """Convert to a later operator set in place where that is possible; say whether the network has it now."""
    if io.opset(model) >= version:
        return True
    if io.weight_bytes(model) >= io.SINGLE_FILE_BYTES:
        return False
    try:
        converted = _converted(ir.to_proto(model), version)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return False
    model.graph = ir.from_proto(converted).graph
    return True


def _converted(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert with ONNX Runtime's own operators of the standard domain out of sight: onnx has no way to convert those."""
    hidden = [
        node for node in _nodes(proto.graph) if node.op_type in runtime_operators.NAMES and node.domain in _STANDARD
    ]
    if not hidden:
        return onnx.version_converter.convert_version(proto, version)
    for node in hidden:
        node.domain = _OUT_OF_SIGHT
    proto.opset_import.append(onnx.helper.make_opsetid(_OUT_OF_SIGHT, 1))
    converted: onnx.ModelProto = onnx.version_converter.convert_version(proto, version)
    for node in _nodes(converted.graph):
        if node.domain == _OUT_OF_SIGHT:
            node.domain = ""
    kept = [each for each in converted.opset_import if each.domain != _OUT_OF_SIGHT]
    del converted.opset_import[:]
    converted.opset_import.extend(kept)
    return converted


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)
