"""Store weights in 4 bits with onnxsim (its groups have 32 weights); runs in its environment.

Settings: `method` rtn | gptq.
"""

from typing import Any

import onnx
import onnxsim
from feeds import feeds


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize and write."""
    # It leaves alone what it does not know the type of, and infers none itself.
    model = onnx.shape_inference.infer_shapes(onnx.load(request["model"]))
    quantized = onnxsim.quantize_weight_only_int4(model)
    if request["settings"]["method"] == "gptq":
        quantized = onnxsim.apply_gptq(model, quantized, calibration_data=list(feeds(request, batch=64)))
    onnx.save(quantized, request["out"])
    return {}
