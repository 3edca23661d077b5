"""The NVIDIA GPU that CUDA counts as its first: its name, driver, libraries and memory, asked of the libraries themselves.

The driver's library is asked through its C interface, so that no package is needed, and so that the answer is about the
device that `CUDA_VISIBLE_DEVICES` leaves, a part of a GPU included.
"""

import ctypes
import re
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

# CUdevice_attribute of the driver's interface.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
# From compute capability 8.0 on matrix units compute products of float32 in TF32 where they are let.
_FIRST_WITH_TF32 = 8
_LOOK_S = 0.002
_MAPS = Path("/proc/self/maps")
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class NvidiaGpu:
    """A GPU, and the libraries that this process computes with on it. None: it is not known."""

    name: str
    driver: str | None
    memory_bytes: int
    capability: tuple[int, int]
    cuda: str | None
    cudnn: str | None

    @property
    def has_tf32(self) -> bool:
        """Say whether products of float32 numbers may be computed in TF32, with 10 bits of mantissa."""
        return self.capability[0] >= _FIRST_WITH_TF32


def first_gpu() -> NvidiaGpu | None:
    """Describe the GPU, None where there is no driver or no device."""
    driver = _driver()
    if driver is None:
        return None
    device, name, memory = _device(driver), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if device is None or driver.cuDeviceGetName(name, len(name), device) != 0:
        return None
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return NvidiaGpu(
        name=name.value.decode(errors="replace"),
        driver=_driver_version(),
        memory_bytes=memory.value,
        capability=(
            _attribute(driver, _CAPABILITY_MAJOR, device),
            _attribute(driver, _CAPABILITY_MINOR, device),
        ),
        cuda=_cuda_version(),
        cudnn=_cudnn_version(),
    )


def tensorrt_version() -> str | None:
    """Give the version of TensorRT that this process has loaded."""
    found = _call("nvinfer", "getInferLibVersion", ctypes.c_int)
    if not found:
        return None
    # Ten thousand for a major version since 10, a thousand before.
    return _dotted(found, major=10_000 if found >= 100_000 else 1000)


class MemoryWatch:
    """Looks at how much of the GPU's memory is taken, until it ends; what was taken before does not count.

    It counts for the whole device: nobody else may use it meanwhile.
    """

    def __init__(self, *, looking: bool = True) -> None:
        self._looking = looking
        self.peak_bytes: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        if self._looking:
            self._thread.start()
            self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._looking:
            self._thread.join()

    def _watch(self) -> None:
        base = _taken()
        if base is not None:
            self.peak_bytes = 0
        self._ready.set()
        while base is not None:
            last = self._over.wait(_LOOK_S)
            self.peak_bytes = max(self.peak_bytes or 0, (_taken() or base) - base)
            if last:
                return


@cache
def _driver() -> ctypes.CDLL | None:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.cuInit(0) == 0 else None
    return None


def _device(driver: ctypes.CDLL) -> ctypes.c_int | None:
    device = ctypes.c_int()
    return device if driver.cuDeviceGet(ctypes.byref(device), 0) == 0 else None


def _attribute(driver: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _taken() -> int | None:
    """Give the bytes of the device's memory that are taken; this thread gets the context that onnxruntime works in."""
    driver = _driver()
    device = None if driver is None else _device(driver)
    if driver is None or device is None:
        return None
    context, free, total = _context(driver, device.value), ctypes.c_size_t(), ctypes.c_size_t()
    if context is None or driver.cuCtxSetCurrent(context) != 0:
        return None
    if driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0:
        return None
    return total.value - free.value


@cache
def _context(driver: ctypes.CDLL, device: int) -> ctypes.c_void_p | None:
    context = ctypes.c_void_p()
    return context if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0 else None


def _driver_version() -> str | None:
    """Give the driver's version as `nvidia-smi` names it."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        management = None
    text = ctypes.create_string_buffer(96)
    if management is not None and management.nvmlInit_v2() == 0:
        told = management.nvmlSystemGetDriverVersion(text, len(text)) == 0
        management.nvmlShutdown()
        if told:
            return text.value.decode(errors="replace")
    try:
        return _DRIVER_VERSION.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _cuda_version() -> str | None:
    version = ctypes.c_int()
    if _call("cudart", "cudaRuntimeGetVersion", ctypes.c_int, ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cudnn_version() -> str | None:
    found = _call("cudnn", "cudnnGetVersion", ctypes.c_size_t)
    if not found:
        return None
    # Since 9 a major version is ten thousand, before it was a thousand.
    return _dotted(found, major=10_000 if found >= 90_000 else 1000)


def _dotted(number: int, *, major: int) -> str:
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _call(name: str, function: str, result: type, *arguments: object) -> int | None:
    """Call a function of a library that this process has loaded; None where it has not."""
    path = _loaded(name)
    if path is None:
        return None
    try:
        called = getattr(ctypes.CDLL(path), function)
    except (OSError, AttributeError):
        return None
    called.restype = result
    return int(called(*arguments))


def _loaded(name: str) -> str | None:
    """Find the file of a library among what this process has mapped: another one of that name may lie in the system."""
    pattern = re.compile(rf"(/\S*/lib{name}\.so[.\d]*)$")
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((found[1] for line in lines if (found := pattern.search(line))), None)
