"""Quantize with onnxruntime.quantization; runs in its environment.

Settings: `kind` static | dynamic; `activations`, `weights` int8 | uint8; `per_channel`, `reduce_range`; `operators`, the
operator types that are quantized (by default all that the tool knows); `method` minmax | entropy | percentile.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from feeds import feeds
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from opset import raised

TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):
    """Hands out one feed after the other."""

    def __init__(self, source: Iterator[dict[str, np.ndarray]]) -> None:
        self._source = source

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Give the next feed, or None at the end."""
        return next(self._source, None)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Prepare as the tool's documentation says, quantize, write."""
    settings = request["settings"]
    folder = Path(tempfile.mkdtemp(prefix="prepared-"))
    try:
        prepared, how = _prepare(Path(request["model"]), folder)
        _quantize(prepared, Path(request["out"]), settings, request)
    finally:
        shutil.rmtree(folder)
    return {"preparation": how}


def _prepare(model: Path, folder: Path) -> tuple[Path, str]:
    prepared, source = folder / "prepared.onnx", folder / "source.onnx"
    onnx.save(raised(onnx.load(model)), source)
    try:
        quant_pre_process(source, prepared)
    except Exception as error:  # noqa: BLE001 - its symbolic shape inference gives up in many ways
        print(f"symbolic shape inference failed: {error}")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        return prepared, "without symbolic shape inference"
    return prepared, "quant_pre_process"


def _quantize(prepared: Path, out: Path, settings: dict[str, Any], request: dict[str, Any]) -> None:
    common = {
        "per_channel": settings.get("per_channel", False),
        "reduce_range": settings.get("reduce_range", False),
        "weight_type": TYPES[settings.get("weights", "int8")],
        "op_types_to_quantize": settings.get("operators"),
    }
    if settings["kind"] == "dynamic":
        quantize_dynamic(prepared, out, **common)
        return
    quantize_static(
        prepared,
        out,
        Reader(feeds(request)),
        quant_format=QuantFormat.QDQ,
        activation_type=TYPES[settings.get("activations", "int8")],
        calibrate_method=METHODS[settings.get("method", "minmax")],
        **common,
    )
