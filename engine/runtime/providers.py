"""The table of execution providers: what onnxruntime calls each, what it is given, who takes the nodes that it leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.target import ProviderName, Target


@dataclass(frozen=True)
class Provider:
    """One line of the table: what onnxruntime calls a provider, what it is given, and who takes the nodes that it leaves.

    `plugin` is the package that brings it to any onnxruntime where it is not built in. `tunable` are the session options that
    reach the provider. `concurrent`: one session may be run by several threads at the same time.
    """

    runtime: str
    device: str
    options: Callable[[Target], dict[str, str]] = lambda _target: {}
    before_cpu: tuple[str, ...] = ()
    memory_pattern: bool = True
    plugin: str | None = None
    tunable: frozenset[str] = frozenset({"graph_optimization"})
    concurrent: bool = True


def _device_zero(_target: Target) -> dict[str, str]:
    return {"device_id": "0"}


def _openvino(target: Target) -> dict[str, str]:
    # The threads are the plugin's own, and without the hint it may compute in bfloat16 where the network says float32.
    load = {"CPU": {"INFERENCE_NUM_THREADS": str(target.threads), "INFERENCE_PRECISION_HINT": "f32"}}
    return {"device_type": "CPU", "load_config": json.dumps(load)}


PROVIDERS: Mapping[ProviderName, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "cpu",
        tunable=frozenset({"threads", "execution_mode", "graph_optimization", "spinning"}),
    ),
    "cuda": Provider("CUDAExecutionProvider", "gpu", _device_zero),
    "tensorrt": Provider("TensorrtExecutionProvider", "gpu", _device_zero, before_cpu=("CUDAExecutionProvider",)),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "cpu",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        tunable=frozenset({"threads", "graph_optimization"}),
    ),
    "directml": Provider("DmlExecutionProvider", "gpu", _device_zero, memory_pattern=False, concurrent=False),
    "migraphx": Provider("MIGraphXExecutionProvider", "gpu", _device_zero),
    "rocm": Provider("ROCMExecutionProvider", "gpu", _device_zero),
    "coreml": Provider("CoreMLExecutionProvider", "npu", lambda _target: {"ModelFormat": "MLProgram"}),
    "webgpu": Provider("WebGpuExecutionProvider", "gpu", plugin="onnxruntime_ep_webgpu"),
    "qnn": Provider("QNNExecutionProvider", "npu", lambda _target: {"backend_type": "htp"}, plugin="onnxruntime_qnn"),
}
