"""Arrays that are mapped from files: what was read of them need not stay in this process's memory."""

import mmap
from typing import Any

import numpy.typing as npt

# Smaller ones are left alone.
_WORTH_BYTES = 16 << 20


def let_go(array: npt.NDArray[Any]) -> None:
    """Let the pages of a mapped array go; they are read from its file, or the system's memory of that, when they are asked for.

    Nothing happens to arrays that are held.
    """
    if array.nbytes < _WORTH_BYTES:
        return
    held: Any = array
    while held is not None and not isinstance(held, mmap.mmap):
        held = getattr(held, "base", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
