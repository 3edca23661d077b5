"""Quantize with onnxsim; runs in its environment.

Settings: `kind` static | dynamic; `activations` uint8 | int8; `full_graph`, quantize every operator it can.
"""

from typing import Any

import onnx
import onnxsim
from feeds import feeds
from opset import raised


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Simplify, as its documentation suggests, quantize, write."""
    settings = request["settings"]
    simplified, same = onnxsim.simplify(raised(onnx.load(request["model"])))
    if settings["kind"] == "dynamic":
        quantized = onnxsim.quantize_dynamic(simplified)
    else:
        quantized = onnxsim.quantize_static(
            simplified,
            calibration_data=list(feeds(request)),
            activation_type=settings.get("activations", "uint8"),
            full_graph=settings.get("full_graph", False),
        )
    onnx.save(quantized, request["out"])
    return {"simplified": same}
