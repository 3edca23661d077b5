"""Options of execution providers that a job may set, by ONNX Runtime's own names, with the values that it may give them.

Only what changes how a network is computed is here. Others hold addresses of memory, paths or libraries to load, and are no
business of a job.
"""

from collections.abc import Mapping

_SWITCH = ("0", "1")

PROVIDER_OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cuda": {
        "cudnn_conv1d_pad_to_nc1d": _SWITCH,
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        "cudnn_conv_use_max_workspace": _SWITCH,
        "enable_cuda_graph": _SWITCH,
        "enable_skip_layer_norm_strict_mode": _SWITCH,
        "fuse_conv_bias": _SWITCH,
        "prefer_nhwc": _SWITCH,
        "use_tf32": _SWITCH,
    },
    "tensorrt": {
        "trt_auxiliary_streams": ("-1", "0", "1", "2", "4"),
        "trt_bf16_enable": _SWITCH,
        "trt_build_heuristics_enable": _SWITCH,
        "trt_builder_optimization_level": ("0", "1", "2", "3", "4", "5"),
        "trt_context_memory_sharing_enable": _SWITCH,
        "trt_cuda_graph_enable": _SWITCH,
        "trt_fp16_enable": _SWITCH,
        "trt_layer_norm_fp32_fallback": _SWITCH,
        "trt_sparsity_enable": _SWITCH,
    },
    "openvino": {
        "INFERENCE_PRECISION_HINT": ("f32", "f16", "bf16"),
        "NUM_STREAMS": ("AUTO", "1", "2", "4", "8"),
        "PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
    },
    "migraphx": {"migraphx_exhaustive_tune": _SWITCH, "migraphx_fp16_enable": _SWITCH},
    "coreml": {
        "MLComputeUnits": ("ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine"),
        "RequireStaticInputShapes": _SWITCH,
    },
    "webgpu": {"enableGraphCapture": _SWITCH, "preferredLayout": ("NCHW", "NHWC")},
    "qnn": {
        "enable_htp_fp16_precision": _SWITCH,
        "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
        "htp_performance_mode": ("default", "balanced", "burst", "high_performance", "sustained_high_performance"),
    },
}


def objection(provider: str, options: Mapping[str, str]) -> str | None:
    """Say what is wrong with a job's options for a provider, None where nothing is."""
    known = PROVIDER_OPTIONS.get(provider, {})
    for name, value in options.items():
        if name not in known:
            there = f"there are {', '.join(sorted(known))}" if known else "it has none"
            return f"{provider} has no option {name} that a job may set: {there}"
        if value not in known[name]:
            return f"{name} of {provider} is one of {', '.join(known[name])}, and not {value}"
    return None
