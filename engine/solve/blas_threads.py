"""How many threads NumPy and SciPy multiply matrices with, and independent parts of a computation side by side.

OpenBLAS gives each process a thread for each core, and they spin while they wait for each other: several processes on one host
then take many times as long for small matrices as with one thread each. NumPy and SciPy bring an OpenBLAS each, so that one
process that computes with both has two pools that are in each other's way.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

_MAPS = Path("/proc/self/maps")
# As OpenBLAS calls its functions, and as the builds in NumPy's and SciPy's wheels do.
_PREFIXES, _SUFFIXES = ("openblas_", "scipy_openblas_"), ("", "64_")

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


def side_by_side(work: Callable[[PartT], ResultT], parts: Sequence[PartT], *, threads: int) -> list[ResultT]:
    """Give the results of independent parts, so many at a time, in which each matrix is multiplied by one thread.

    Unlike BLAS with several threads, what comes out does not depend on their number. Parts should take a millisecond or more.
    """
    with one_blas_thread():
        if threads < 2 or len(parts) < 2:
            return [work(part) for part in parts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let matrices be multiplied by the calling thread alone; nothing where the libraries are others than OpenBLAS."""
    libraries = _libraries()
    before = [library.get() for library in libraries]
    for library in libraries:
        library.set(1)
    try:
        yield
    finally:
        for library, count in zip(libraries, before, strict=True):
            library.set(count)


class _Library:
    def __init__(self, get: Any, put: Any) -> None:
        self._get, self._set = get, put

    def get(self) -> int:
        return int(self._get())

    def set(self, count: int) -> None:
        self._set(ctypes.c_int(count))


@cache
def _libraries() -> tuple[_Library, ...]:
    """Find those that are loaded in this process."""
    # Loaded here, so that they are seen.
    import numpy as np  # noqa: F401, PLC0415
    import scipy.linalg  # noqa: F401, PLC0415

    if not _MAPS.exists():
        return ()
    files = {line.split(maxsplit=5)[-1].strip() for line in _MAPS.read_text().splitlines() if "openblas" in line}
    return tuple(found for file in sorted(files) if (found := _opened(file)) is not None)


def _opened(file: str) -> _Library | None:
    try:
        handle = ctypes.CDLL(file)
    except OSError:
        return None
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            get = getattr(handle, f"{prefix}get_num_threads{suffix}", None)
            put = getattr(handle, f"{prefix}set_num_threads{suffix}", None)
            if get is not None and put is not None:
                return _Library(get, put)
    return None
