"""onnx's checker over a stored network, as lenient as ONNX Runtime where shapes are declared wrongly."""

from pathlib import Path

import onnx

from engine.graph import runtime_operators

# Beyond this no tensor tells a shape, so shape inference does without its content.
_SHAPE_BYTES = 1 << 12


def check(network: Path | bytes, *, infer: bool) -> str | None:
    """Check a stored or serialized network; `infer`: its shapes too, for which onnx has to know all operators.

    Where no more is wrong than shapes that the network declares of its outputs or of tensors inside, ONNX Runtime goes by
    what the operators give; then this gives onnx's complaint, else None.

    Raises:
        onnx.checker.ValidationError: the network is not valid.
        onnx.shape_inference.InferenceError: its operators do not go together.
    """
    runtime_operators.register()
    try:
        onnx.checker.check_model(str(network) if isinstance(network, Path) else network, full_check=infer)
    except onnx.shape_inference.InferenceError as error:
        undeclared = _without_declared_shapes(network)
        onnx.shape_inference.infer_shapes(undeclared, check_type=True, strict_mode=True)
        return str(error)
    return None


def _without_declared_shapes(network: Path | bytes) -> onnx.ModelProto:
    if isinstance(network, Path):
        structure = onnx.load(network, load_external_data=False)
    else:
        structure = onnx.load_model_from_string(network)
    del structure.graph.value_info[:]
    for value in structure.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in structure.graph.initializer:
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
    return structure
