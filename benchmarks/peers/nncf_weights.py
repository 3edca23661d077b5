"""Store weights in 4 bits with NNCF; runs in its environment.

Settings: `group`, weights per scale; `scale_estimation`, `awq`, `gptq`: NNCF's corrections by data.
"""

from typing import Any

import nncf
import onnx
from feeds import feeds


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize and write."""
    settings = request["settings"]
    corrections = {name: True for name in ("scale_estimation", "awq", "gptq") if settings.get(name)}
    quantized = nncf.compress_weights(
        onnx.load(request["model"]),
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=settings["group"],
        all_layers=True,
        dataset=nncf.Dataset(list(feeds(request, batch=64))) if corrections else None,
        **corrections,
    )
    onnx.save(quantized, request["out"])
    return {}
