"""What this process can run networks on."""

from dataclasses import asdict
from importlib import import_module
from typing import Any


def targets() -> list[dict[str, Any]]:
    """List the providers that really run a small network here, each with its device, CPU flags and versions."""
    found = import_module("engine.measure.providers").available_targets()
    return [asdict(target) for target in found if target.available]
