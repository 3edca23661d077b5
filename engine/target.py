"""What this process can run networks on."""

from importlib import import_module
from typing import Any


def targets() -> list[dict[str, Any]]:
    """List the providers that really run a small network here, each with its device, CPU flags and versions."""
    found: list[dict[str, Any]] = import_module("engine.measure.providers").available_targets()
    return found
