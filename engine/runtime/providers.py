"""The table of execution providers: what onnxruntime calls each, what it is given, who takes the nodes that it leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.runtime import nvidia, processor
from engine.runtime.engine_cache import engine_folder
from engine.target import ProviderName, Target

Options = Mapping[str, str]


@dataclass(frozen=True)
class Provider:
    """One line of the table: what onnxruntime calls a provider, what it is given, and who takes the nodes that it leaves.

    `plugin` is the package that brings it to any onnxruntime where it is not built in. `tunable` are the session options that
    reach the provider. `concurrent`: one session may be run by several threads at the same time. `nvidia`: its device is an
    NVIDIA GPU.

    `candidates` are options of its own that may make a network faster and leave its numbers alone but for their rounding;
    `of_convolutions` names those that only convolutions know.
    `exact` are those that make products of float32 numbers such products, and `exact_on` the provider that has them where it
    has none itself. `memory` is what onnxruntime calls its device's memory, where inputs can be put there. `captures` is the
    option that records a run and plays it back, always on the same arrays; it takes inputs in the device's memory.
    """

    runtime: str
    device: str
    options: Callable[[Target], dict[str, str]] = lambda target: dict(target.provider_options)
    before_cpu: tuple[str, ...] = ()
    memory_pattern: bool = True
    plugin: str | None = None
    tunable: frozenset[str] = frozenset({"graph_optimization", "provider_options", "inputs_on_device", "fixed_axes"})
    concurrent: bool = True
    nvidia: bool = False
    candidates: tuple[Options, ...] = ()
    of_convolutions: frozenset[str] = frozenset()
    exact: Options = field(default_factory=dict)
    exact_on: ProviderName | None = None
    memory: str | None = None
    captures: str | None = None


def _device_zero(target: Target) -> dict[str, str]:
    return {"device_id": "0", **target.provider_options}


def _tensorrt(target: Target) -> dict[str, str]:
    """Give TensorRT's options: an engine takes minutes to build, so it and the times of its kernels are kept."""
    gpu = nvidia.first_gpu()
    named = () if gpu is None else (gpu.name, "sm", *map(str, gpu.capability), gpu.driver or "", gpu.cuda or "")
    folder = str(engine_folder("tensorrt", nvidia.tensorrt_version() or "", *named))
    return {
        **_device_zero(target),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def _openvino(target: Target) -> dict[str, str]:
    # The threads are the plugin's own, and without the hint it may compute in bfloat16 where the network says float32.
    properties = {"INFERENCE_NUM_THREADS": str(target.threads), "INFERENCE_PRECISION_HINT": "f32"}
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": {**properties, **target.provider_options}})}


# Fewer optimisations of the graph leave more kernels to start, and a session here takes seconds to make.
_OF_THE_DEVICE = frozenset({"provider_options", "inputs_on_device", "fixed_axes"})
_CUDA_CANDIDATES: tuple[Options, ...] = (
    {"prefer_nhwc": "1"},
    {"fuse_conv_bias": "1"},
    {"cudnn_conv_algo_search": "HEURISTIC"},
    # Never faster: it tells what exact products cost.
    {"use_tf32": "0"},
)

PROVIDERS: Mapping[ProviderName, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "cpu",
        tunable=frozenset({"threads", "execution_mode", "graph_optimization", "spinning"}),
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "gpu",
        _device_zero,
        tunable=_OF_THE_DEVICE,
        nvidia=True,
        candidates=_CUDA_CANDIDATES,
        of_convolutions=frozenset({"prefer_nhwc", "fuse_conv_bias", "cudnn_conv_algo_search"}),
        exact={"use_tf32": "0"},
        memory="cuda",
        captures="enable_cuda_graph",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "gpu",
        _tensorrt,
        before_cpu=("CUDAExecutionProvider",),
        tunable=_OF_THE_DEVICE,
        nvidia=True,
        candidates=({"trt_builder_optimization_level": "5"}, {"trt_auxiliary_streams": "0"}),
        exact_on="cuda",
        memory="cuda",
        captures="trt_cuda_graph_enable",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "cpu",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        tunable=frozenset({"threads", "graph_optimization", "provider_options", "fixed_axes"}),
        candidates=({"PERFORMANCE_HINT": "LATENCY"}, {"NUM_STREAMS": "1"}),
    ),
    "directml": Provider("DmlExecutionProvider", "gpu", _device_zero, memory_pattern=False, concurrent=False),
    "migraphx": Provider(
        "MIGraphXExecutionProvider", "gpu", _device_zero, candidates=({"migraphx_exhaustive_tune": "1"},)
    ),
    "rocm": Provider("ROCMExecutionProvider", "gpu", _device_zero),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "npu",
        lambda target: {"ModelFormat": "MLProgram", **target.provider_options},
        candidates=({"MLComputeUnits": "CPUAndGPU"}, {"MLComputeUnits": "CPUAndNeuralEngine"}),
        # The neural engine computes in 16 bits.
        exact={"MLComputeUnits": "CPUOnly"},
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "gpu",
        plugin="onnxruntime_ep_webgpu",
        candidates=({"preferredLayout": "NHWC"}, {"preferredLayout": "NCHW"}),
        of_convolutions=frozenset({"preferredLayout"}),
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        "npu",
        lambda target: {"backend_type": "htp", **target.provider_options},
        plugin="onnxruntime_qnn",
        candidates=({"htp_performance_mode": "burst"},),
    ),
}


def untimed_target(target: Target) -> Target:
    """Give the target for runs that nobody times: on every core that may be used, where the threads are ONNX Runtime's own."""
    if target.provider != "cpu":
        return target
    return target.model_copy(update={"threads": max(target.threads, processor.threads())})


def exact_target(target: Target) -> Target:
    """Give the target on which float32 is float32: what a lossless step changes is compared there, not what rounding does."""
    provider = PROVIDERS[target.provider]
    if provider.exact_on is not None:
        changed = {"provider": provider.exact_on, "provider_options": dict(PROVIDERS[provider.exact_on].exact)}
        return target.model_copy(update=changed)
    if not provider.exact:
        return target
    return target.model_copy(update={"provider_options": {**target.provider_options, **provider.exact}})
