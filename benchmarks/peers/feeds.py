"""Calibration data as the scripts of the peers read them: feeds of the network, one batch each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def feeds(request: dict[str, Any], batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds of the calibration samples, in order.

    `request["calibration"]` names an .npz: arrays with the samples on the first axis. `request["layout"]` may say which
    axis of an input the samples belong on (`sample_axis`), and which arrays are the same in every run (`constants`).
    """
    layout = request.get("layout", {})
    axes, fixed = layout.get("sample_axis", {}), layout.get("constants", [])
    with np.load(Path(request["calibration"]), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    constants = {name: arrays.pop(name) for name in fixed}
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch):
        chosen = {name: array[start : start + batch] for name, array in arrays.items()}
        moved = {name: np.moveaxis(array, 0, axes.get(name, 0)) for name, array in chosen.items()}
        yield {**{name: np.ascontiguousarray(array) for name, array in moved.items()}, **constants}


def count(request: dict[str, Any]) -> int:
    """Give the number of calibration samples."""
    return sum(1 for _ in feeds(request))
