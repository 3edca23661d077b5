"""The configuration of a network for Triton Inference Server's ONNX Runtime backend (`config.pbtxt`)."""

from collections.abc import Iterator

import engine
from services.errors import FieldError, InvalidError
from services.provenance import Provenance

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "str": "TYPE_STRING",
}
_ON_GPU = frozenset({"cuda", "tensorrt"})
# Triton's words for onnxruntime's levels of graph optimisation; without one it is all of it.
_LEVELS = {"disabled": None, "basic": -1, "extended": 1, "all": None}


def triton_config(name: str, found: Provenance, *, max_batch: int) -> str:
    """Give the file: inputs, outputs, and the session options that the network was measured with.

    With `max_batch` Triton gathers requests into batches of up to so many; raises InvalidError where the first axis of an input or
    an output is not open, or a type is not Triton's.
    """
    return "\n".join(_lines(name, found, max_batch)) + "\n"


def _lines(name: str, found: Provenance, max_batch: int) -> Iterator[str]:
    yield f'name: "{name}"'
    yield 'backend: "onnxruntime"'
    yield f"max_batch_size: {max_batch}"
    for kind, tensors in (("input", found.inspection.inputs), ("output", found.inspection.outputs)):
        yield f"{kind} ["
        yield ",\n".join(_tensor(each, max_batch) for each in tensors)
        yield "]"
    if max_batch:
        yield "dynamic_batching { }"
    on_gpu = found.report is not None and found.report.target.provider in _ON_GPU
    yield f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if on_gpu else 'KIND_CPU'} }} ]"
    if found.report is not None:
        yield from _options(found.report)


def _tensor(tensor: "engine.TensorInfo", max_batch: int) -> str:
    if tensor.dtype not in _TYPES:
        raise _refused(f"`{tensor.name}` has the type {tensor.dtype}, which Triton does not know.")
    if tensor.shape is None:
        raise _refused(f"`{tensor.name}` does not say how many axes it has, which Triton has to know.")
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if max_batch:
        if not shape or shape[0] != -1:
            raise _refused(
                f"`{tensor.name}` has no open first axis to put a batch along; leave max_batch out, and requests come one by one."
            )
        shape = shape[1:]
    dims = f"dims: [ {', '.join(map(str, shape))} ]" if shape else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f'  {{ name: "{tensor.name}" data_type: {_TYPES[tensor.dtype]} {dims} }}'


def _options(report: "engine.Report") -> Iterator[str]:
    loading = report.loading
    if loading is None:
        return
    options = loading.options
    said = {"intra_op_thread_count": str(options.threads)}
    if options.execution_mode == "parallel":
        said |= {"execution_mode": "1", "inter_op_thread_count": str(options.inter_op_threads)}
    for name, value in said.items():
        yield f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'
    level = _LEVELS[options.graph_optimization]
    if level is not None:
        yield f"optimization {{ graph {{ level: {level} }} }}"
    if report.target.provider == "tensorrt":
        yield 'optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt" } ] } }'
    if report.target.provider == "openvino":
        yield 'optimization { execution_accelerators { cpu_execution_accelerator : [ { name : "openvino" } ] } }'


def _refused(reason: str) -> InvalidError:
    return InvalidError(
        "The network cannot be served by Triton so.", (FieldError("/max_batch", reason),), code="triton_refuses"
    )
