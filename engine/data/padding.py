"""Which positions of a sample are padding, where an input says so."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.batches import Alone


def valid_positions(feed: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.bool_] | None:
    """Give which positions (samples, positions) are no padding, where an input is the mask that says so."""
    for name, array in feed.items():
        if "mask" in name.lower() and array.ndim == 2 and array.dtype.kind in "iub":
            marks = np.asarray(array[:count] if not isinstance(feed, Alone) else array)
            if marks.size and bool(((marks == 0) | (marks == 1)).all()):
                return marks.astype(np.bool_)
    return None
