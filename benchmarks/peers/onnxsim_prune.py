"""Prune with onnxsim; runs in its environment.

Settings: `ratio`, the share of channels (and of heads, FFN neurons) that go; `wanda`, by activations too; `finetune` None |
closed (its ridge regression of MatMul and Gemm) | blocks (its block-wise distillation).
"""

from typing import Any

import onnx
import onnxsim
from feeds import feeds


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Simplify, prune channels and heads, repair if asked, write."""
    settings = request["settings"]
    ratio, samples = settings["ratio"], list(feeds(request))
    model, _ = onnxsim.simplify(onnx.load(request["model"]))
    if settings.get("wanda"):
        pruned = onnxsim.apply_structured_wanda_pruning(model, calibration_data=samples, sparsity=ratio)
        pruned = onnxsim.apply_attention_head_wanda_pruning(pruned, calibration_data=samples, sparsity=ratio)
    else:
        pruned = onnxsim.apply_structured_pruning(model, sparsity=ratio)
        pruned = onnxsim.apply_attention_head_pruning(pruned, sparsity=ratio)
    if settings.get("finetune") == "closed":
        pruned = onnxsim.apply_pruning_finetune(model, pruned, calibration_data=samples)
    elif settings.get("finetune") == "blocks":
        pruned, _ = onnxsim.apply_block_finetune_all_blocks(
            model, pruned, calibration_data=list(feeds(request, batch=32)), num_iterations=200
        )
    onnx.save(pruned, request["out"])
    return {"parameters": _parameters(pruned), "parameters_before": _parameters(model)}


def _parameters(model: onnx.ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
