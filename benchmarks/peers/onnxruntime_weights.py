"""Store weights in 4 or 8 bits with onnxruntime's tools; runs in its environment.

Settings: `method` rtn | gptq | dynamic (int8 by quantize_dynamic); `group`, weights per scale; `external`.
"""

from pathlib import Path
from typing import Any

import onnx
from feeds import feeds
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


class Reader(CalibrationDataReader):
    """Hands out the calibration samples in batches of 64. The tool copies it, so it holds a list, not an iterator."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._feeds = list(feeds(request, batch=64))
        self._next = 0

    def get_next(self) -> Any:
        """Give the next feed, or None at the end."""
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None

    def rewind(self) -> None:
        """Start again."""
        self._next = 0


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize and write."""
    settings = request["settings"]
    external = settings.get("external", False)
    if settings["method"] == "dynamic":
        quantize_dynamic(Path(request["model"]), Path(request["out"]), use_external_data_format=external)
        return {}
    quantizer = MatMulNBitsQuantizer(onnx.load(request["model"]), algo_config=_config(settings, request))
    quantizer.process()
    quantizer.model.save_model_to_file(request["out"], use_external_data_format=external)
    return {}


def _config(settings: dict[str, Any], request: dict[str, Any]) -> Any:
    group = settings["group"]
    if settings["method"] == "gptq":
        return GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(request), block_size=group)
    return DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=False, accuracy_level=1, bits=4)
