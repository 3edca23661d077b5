"""Quantize with NNCF's ONNX backend; runs in its environment.

Settings: `preset` performance | mixed; `transformer`, the network is one; `overflow_fix`, 7-bit weights everywhere.
"""

from typing import Any

import nncf
import onnx
from feeds import count, feeds
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from opset import raised

PRESETS = {"performance": nncf.QuantizationPreset.PERFORMANCE, "mixed": nncf.QuantizationPreset.MIXED}


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize on all calibration samples and write."""
    settings = request["settings"]
    advanced = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE) if settings.get("overflow_fix") else None
    quantized = nncf.quantize(
        raised(onnx.load(request["model"])),
        nncf.Dataset(list(feeds(request))),
        preset=PRESETS[settings["preset"]] if "preset" in settings else None,
        subset_size=count(request),
        model_type=nncf.ModelType.TRANSFORMER if settings.get("transformer") else None,
        advanced_parameters=advanced,
    )
    onnx.save(quantized, request["out"])
    return {}
