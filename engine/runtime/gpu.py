"""Which GPU a provider computes on, as far as it decides on figures: no two of them may share one."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runtime import nvidia
from engine.runtime.plugins import plugin_devices
from engine.runtime.providers import PROVIDERS
from engine.target import ProviderName

_PCI = Path("/sys/bus/pci/devices")
# The class of a display controller or of an accelerator, as PCI numbers them.
_DISPLAY_CLASSES = ("0x03", "0x12")


@dataclass(frozen=True)
class GpuProfile:
    """A GPU and the libraries that drive it. None: it has no such thing, or it is not known."""

    name: str
    driver: str | None = None
    memory_bytes: int | None = None
    cuda: str | None = None
    cudnn: str | None = None
    # Whether the provider computes products of float32 numbers in TF32 unless it is told otherwise; None: there is no TF32.
    tf32: bool | None = None


def gpu_profile(provider: ProviderName) -> GpuProfile | None:
    """Describe the GPU that a proven provider runs on; None for providers that run on none."""
    line = PROVIDERS[provider]
    if line.device != "gpu":
        return None
    found = nvidia.first_gpu() if line.nvidia else None
    if found is None:
        return GpuProfile(_plugin_device(line.runtime) or _display_devices() or f"an unnamed GPU of {platform.node()}")
    return GpuProfile(
        name=found.name,
        driver=found.driver,
        memory_bytes=found.memory_bytes,
        cuda=found.cuda,
        cudnn=found.cudnn,
        tf32=True if found.has_tf32 else None,
    )


def described(gpu: GpuProfile | None) -> dict[str, Any]:
    """Give what decides on figures, by the names that reports, lists of targets and keys of results have for it."""
    if gpu is None:
        return {}
    return {
        "gpu": gpu.name,
        "gpu_memory_bytes": gpu.memory_bytes,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
        "cudnn": gpu.cudnn,
    }


def _plugin_device(runtime: str) -> str | None:
    """Name the hardware that a plugin provider found first, by its maker and the maker's number for it."""
    for each in plugin_devices(runtime):
        hardware = each.device
        if hardware.type.name.lower() == "gpu":
            told = hardware.metadata.get("Description") or hardware.vendor or f"vendor {hardware.vendor_id:#06x}"
            return f"{told} {hardware.device_id:#06x}"
    return None


def _display_devices() -> str | None:
    """Name the display devices of this host by the numbers of their makers."""
    found = []
    for device in sorted(_PCI.glob("*")):
        try:
            kind, vendor, number = ((device / name).read_text().strip() for name in ("class", "vendor", "device"))
        except OSError:
            continue
        if kind.startswith(_DISPLAY_CLASSES):
            found.append(f"{vendor}:{number}")
    return "PCI " + " ".join(found) if found else None


def memory_watch(provider: ProviderName) -> nvidia.MemoryWatch:
    """Give what looks at the memory of a provider's GPU while something runs; it sees nothing where there is none."""
    return nvidia.MemoryWatch(looking=PROVIDERS[provider].nvidia)
