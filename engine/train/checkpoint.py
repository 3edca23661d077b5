"""What a training writes down so that another process goes on from there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.train.framework import torch


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and texts under this name only when all of it is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


def load(path: Path) -> dict[str, Any] | None:
    """Read what was saved, onto the CPU; None where there is nothing that can be read. No code in it is run."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  # broken bytes raise what they like, and a training can begin again
        return None
    return found
