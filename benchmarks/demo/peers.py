"""onnxruntime.quantization's six static settings, as its documentation recommends to try them."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it when it is imported

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


@dataclass(frozen=True)
class Setting:
    """Types and options of one call of quantize_static."""

    activation: QuantType
    weight: QuantType
    per_channel: bool = False
    reduce_range: bool = False


SETTINGS = {
    "s8s8 (default)": Setting(QuantType.QInt8, QuantType.QInt8),
    "s8s8 per channel": Setting(QuantType.QInt8, QuantType.QInt8, per_channel=True),
    "u8s8": Setting(QuantType.QUInt8, QuantType.QInt8),
    "u8s8 7-bit": Setting(QuantType.QUInt8, QuantType.QInt8, reduce_range=True),
    "u8s8 7-bit per channel": Setting(QuantType.QUInt8, QuantType.QInt8, per_channel=True, reduce_range=True),
    "u8u8": Setting(QuantType.QUInt8, QuantType.QUInt8),
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, name: str, images: npt.NDArray[np.float32]) -> None:
        self._feeds: Iterator[dict[str, npt.NDArray[np.float32]]] = (
            {name: images[start : start + 64]} for start in range(0, len(images), 64)
        )

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantize(source: Path, to: Path, setting: Setting, name: str, images: npt.NDArray[np.float32]) -> None:
    """Write `source` as this setting makes it, calibrated by min-max on the images."""
    logging.disable(logging.WARNING)  # it recommends its own preprocessing, which changes nothing here
    quantize_static(
        source,
        to,
        _Reader(name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=setting.per_channel,
        reduce_range=setting.reduce_range,
        activation_type=setting.activation,
        weight_type=setting.weight,
    )
    logging.disable(logging.NOTSET)
