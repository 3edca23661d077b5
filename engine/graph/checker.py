"""onnx's checker over a stored network, as lenient as ONNX Runtime where shapes are declared wrongly or not at all."""

from collections.abc import Container
from pathlib import Path

import onnx

from engine.graph import runtime_operators

# Beyond this no tensor tells a shape, so shape inference does without its content.
_SHAPE_BYTES = 1 << 12
# What comes of C++'s own exceptions where onnx's rules for an operator take more for granted than they checked.
_CPP_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


def check(network: Path | bytes, *, infer: bool) -> str | None:
    """Check a stored or serialized network; `infer`: its shapes too, for which onnx has to know all operators.

    Where no more is wrong than shapes that the network declares of its outputs or of tensors inside, ONNX Runtime goes by
    what the operators give; then this gives onnx's complaint, else None. Outputs may be declared without a shape.

    Raises:
        onnx.checker.ValidationError: the network is not valid.
        onnx.shape_inference.InferenceError: its operators do not go together.
    """
    runtime_operators.register()
    try:
        return _complaint(network, infer=infer)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        raise
    except _CPP_ERRORS as error:
        raise onnx.checker.ValidationError("its graph cannot be checked") from error


def _complaint(network: Path | bytes, *, infer: bool) -> str | None:
    try:
        _check_declared(network, infer=infer)
    except onnx.shape_inference.InferenceError as error:
        undeclared = _without_declared_shapes(network)
        onnx.shape_inference.infer_shapes(undeclared, check_type=True, strict_mode=True)
        return str(error)
    return None


def blames_original(network: Path, original: Path, *, infer: bool) -> bool:
    """Say of a network that `check` complains about whether its original is to blame; `infer`: as there, of the original.

    It is where it is complained about too, and where the network only keeps what it declares of its outputs: what the
    original computes of a shape may be a constant by now, and only a constant is seen to contradict a declaration.
    """
    if check(original, infer=infer) is not None:
        return True
    structure = _structure(network)
    if _declared(structure) != _declared(_structure(original)):
        return False
    for value in structure.graph.output:
        value.type.tensor_type.ClearField("shape")
    _cut_large(structure)
    try:
        onnx.shape_inference.infer_shapes(structure, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _declared(structure: onnx.ModelProto) -> dict[str, bytes]:
    return {value.name: value.type.tensor_type.shape.SerializeToString() for value in structure.graph.output}


def _check_declared(network: Path | bytes, *, infer: bool) -> None:
    try:
        onnx.checker.check_model(str(network) if isinstance(network, Path) else network, full_check=infer)
    except onnx.checker.ValidationError:
        structure = _structure(network)
        bare = {value.name for value in structure.graph.output if _is_bare(value)}
        if not bare:
            raise
        onnx.checker.check_model(_with_shapes(structure, bare), full_check=infer)


def _is_bare(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def _with_shapes(structure: onnx.ModelProto, bare: Container[str]) -> bytes:
    """Serialize a network with some shape for each output, as onnx's checker asks for; `bare`: those that have none."""
    shapeless = onnx.ModelProto()
    shapeless.CopyFrom(structure)
    _cut_large(shapeless)
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(shapeless).graph.output}
    for value in structure.graph.output:
        if value.name in bare:
            # Where nothing can be inferred, nothing contradicts the shape of a single number, which this is then.
            value.type.tensor_type.shape.CopyFrom(inferred[value.name].type.tensor_type.shape)
    # What lies in other files is not here to be checked: onnx would look for it beside the process.
    listed = {value.name for value in structure.graph.input}
    for at, tensor in reversed(list(enumerate(structure.graph.initializer))):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            if tensor.name not in listed:
                structure.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
            del structure.graph.initializer[at]
    serialized: bytes = structure.SerializeToString()
    return serialized


def _without_declared_shapes(network: Path | bytes) -> onnx.ModelProto:
    structure = _structure(network)
    del structure.graph.value_info[:]
    for value in structure.graph.output:
        value.type.tensor_type.ClearField("shape")
    _cut_large(structure)
    return structure


def _structure(network: Path | bytes) -> onnx.ModelProto:
    if isinstance(network, Path):
        return onnx.load(network, load_external_data=False)
    return onnx.load_model_from_string(network)


def _cut_large(structure: onnx.ModelProto) -> None:
    """Take away the content of weights that tell no shape."""
    for tensor in structure.graph.initializer:
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
