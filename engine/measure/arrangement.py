"""Where the samples lie in what a run gives: on an axis of an output, or the whole output belongs to its run."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.measure import metrics
from engine.measure.metrics import Array

Shape = tuple[int, ...]


def batched_axis(one: Shape, several: Shape, count: int) -> int | None:
    """Give the axis that has size 1 in the run of one sample and `count` in that of several, if nothing else differs."""
    if len(one) != len(several):
        return None
    differing = [axis for axis, (left, right) in enumerate(zip(one, several, strict=True)) if left != right]
    fits = len(differing) == 1 and one[differing[0]] == 1 and several[differing[0]] == count
    return differing[0] if fits else None


def axis_of_all(shapes: Sequence[Shape], count: int, *, rows_depend_on_data: bool) -> int | None:
    """Give the axis of size `count` in every run: the first one, else the second of (steps, samples, ...).

    Where the data decide the number of rows, a first axis that happens to fit says nothing unless other axes follow that vary.
    """
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1:
        return None
    rank = ranks.pop()
    if rank >= 1 and all(shape[0] == count for shape in shapes) and not (rows_depend_on_data and rank < 3):
        return 0
    if rank >= 3 and all(shape[1] == count for shape in shapes):
        return 1
    return None


def arranged(value: Array, axis: int | None, count: int) -> Array:
    """Put the samples on the first axis and cut padding off; without an axis the whole output is one sample's."""
    return value[None] if axis is None else np.moveaxis(value, axis, 0)[:count]


def tensors(outputs: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, str]]:
    """Give the outputs that can be compared, and of the others why they cannot."""
    found: dict[str, Array] = {}
    others: dict[str, str] = {}
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            others[name] = "it is a sequence or a map, which is not compared"
        elif value.dtype.kind == "c":
            others[name] = "it holds complex numbers, which are not compared"
        else:
            found[name] = plain(value)
    return found, others


def plain(value: Array) -> Array:
    """Give floats that numpy lacks (bfloat16, float8) as float32, and text as numbers that stand for it."""
    if value.dtype.kind in "OUS":
        return np.array([zlib.crc32(str(each).encode()) for each in value.ravel()], np.int64).reshape(value.shape)
    if value.dtype.kind == "V":
        return value.astype(np.float32 if metrics.is_float(value) else np.int64)
    return value


def finite(values: Array) -> NDArray[np.bool_]:
    """Say which numbers are finite."""
    return np.isfinite(values) if metrics.is_float(values) else np.ones(values.shape, np.bool_)


def has_nan(values: Array) -> bool:
    """Say whether an output holds NaN."""
    return metrics.is_float(values) and bool(np.isnan(values).any())
