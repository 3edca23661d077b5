"""Memory that was let go of, back to the system."""

import ctypes
import gc
import sys
from functools import cache
from typing import Any

# Smaller networks are not worth the time of a look.
_WORTH_BYTES = 8 << 20


def give_back(let_go: int) -> None:
    """Give the system the pages that nothing lies on any more, where the C library keeps them for later (glibc does).

    Graphs point at themselves, so they are let go of only when somebody looks for such circles, and Python looks by the number of
    objects, however large their weights are. `let_go`: about the bytes of a network that was.
    """
    if let_go < _WORTH_BYTES:
        return
    gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
