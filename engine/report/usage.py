"""Session options as Python that a reader can paste: the same session as the one that was measured."""

from collections.abc import Iterator

from engine.report.run_facts import SessionOptions
from engine.target import Target

_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
_ALWAYS = {"coreml": {"ModelFormat": "MLProgram"}, "qnn": {"backend_type": "htp"}}
_PLUGINS = {"webgpu": "onnxruntime_ep_webgpu", "qnn": "onnxruntime_qnn"}


def usage(target: Target, options: SessionOptions) -> str:
    """Give the lines that open `model.onnx` with some options on a target's provider, and run it."""
    return "\n".join(_lines(target, options)) + "\n"


def provider_name(target: Target) -> str:
    """Give what onnxruntime calls a target's provider."""
    return _NAMES[target.provider]


def _lines(target: Target, options: SessionOptions) -> Iterator[str]:
    yield "import onnxruntime as ort"
    yield ""
    if target.provider in {"cuda", "tensorrt"}:
        yield "ort.preload_dlls()  # the CUDA libraries that pip installed"
    yield "options = ort.SessionOptions()"
    yield f"options.intra_op_num_threads = {options.threads}"
    if options.execution_mode == "parallel":
        yield "options.execution_mode = ort.ExecutionMode.ORT_PARALLEL"
        yield f"options.inter_op_num_threads = {options.inter_op_threads}"
    yield f"options.graph_optimization_level = ort.GraphOptimizationLevel.{_LEVELS[options.graph_optimization]}"
    if not options.spinning:
        yield 'options.add_session_config_entry("session.intra_op.allow_spinning", "0")'
        yield 'options.add_session_config_entry("session.inter_op.allow_spinning", "0")'
    for axis, size in options.fixed_axes.items():
        yield f"options.add_free_dimension_override_by_name({axis!r}, {size})"
    yield from _session(target, options)
    if options.inputs_on_device:
        yield from _binding(options)


def _session(target: Target, options: SessionOptions) -> Iterator[str]:
    name, given = _NAMES[target.provider], _given(target, options)
    if target.provider in _PLUGINS:
        module = _PLUGINS[target.provider]
        yield f"import {module}"
        yield ""
        yield f'ort.register_execution_provider_library("{name}", {module}.get_library_path())'
        yield f'devices = [each for each in ort.get_ep_devices() if each.ep_name == "{name}"]'
        yield f"options.add_provider_for_devices(devices[:1], {_dict(given)})"
        yield 'session = ort.InferenceSession("model.onnx", options)'
        return
    rest = {"cpu": (), "tensorrt": ("CUDAExecutionProvider", "CPUExecutionProvider")}.get(
        target.provider, ("CPUExecutionProvider",)
    )
    providers = ", ".join([f'("{name}", {_dict(given)})', *(f'"{each}"' for each in rest)])
    yield f'session = ort.InferenceSession("model.onnx", options, providers=[{providers}])'


def _given(target: Target, options: SessionOptions) -> dict[str, str]:
    if target.provider != "openvino":
        return {**_ALWAYS.get(target.provider, {}), **options.provider_options}
    properties = {
        "INFERENCE_NUM_THREADS": str(options.threads),
        "INFERENCE_PRECISION_HINT": "f32",
        **options.provider_options,
    }
    inner = ", ".join(f'"{key}": "{value}"' for key, value in properties.items())
    return {"device_type": "CPU", "load_config": f'{{"CPU": {{{inner}}}}}'}


def _dict(given: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{key}": {_quoted(value)}' for key, value in given.items()) + "}"


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def _binding(options: SessionOptions) -> Iterator[str]:
    recorded = any(name in options.provider_options for name in ("enable_cuda_graph", "trt_cuda_graph_enable"))
    yield ""
    yield "# Inputs go to the GPU once, outputs stay there: `inputs` are arrays by name."
    yield "binding = session.io_binding()"
    yield "held = {name: ort.OrtValue.ortvalue_from_numpy(array, 'cuda', 0) for name, array in inputs.items()}"
    yield "for name, value in held.items():"
    yield "    binding.bind_ortvalue_input(name, value)  # later: value.update_inplace(new_array)"
    yield "names = [output.name for output in session.get_outputs()]"
    yield "for name in names:"
    yield "    binding.bind_output(name, 'cuda')"
    if recorded:
        yield "# A run is recorded once and played back on the same arrays, so these have to keep their places and shapes."
        yield "once = ort.RunOptions()"
        yield 'once.add_run_config_entry("gpu_graph_id", "-1")  # this run is not recorded: it only makes the outputs'
        yield "session.run_with_iobinding(binding, once)"
        yield "made = binding.get_outputs()"
        yield "binding.clear_binding_outputs()"
        yield "for name, value in zip(names, made):"
        yield "    binding.bind_ortvalue_output(name, value)"
    yield "session.run_with_iobinding(binding)"
    yield "outputs = dict(zip(names, binding.copy_outputs_to_cpu()))"
