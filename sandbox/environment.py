"""What a child has of the environment: nothing of its parent's but what names devices and libraries."""

import os
from pathlib import Path

# These name devices and libraries that a GPU provider needs; everything else of our environment stays here.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
_EVERYWHERE = {
    "LANG": "C.UTF-8",
    "ORT_DISABLE_TELEMETRY": "1",
    # They would be looked for in all that is installed, and could send what they see elsewhere.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}


def environment_for(workspace: Path) -> dict[str, str]:
    """Give the environment of a child that works in a folder."""
    return {**environment(), "HOME": str(workspace), "TMPDIR": str(workspace / "tmp")}


def environment() -> dict[str, str]:
    """Give that of a process that has no folder."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed, **_EVERYWHERE}
