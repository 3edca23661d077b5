"""What this process can run networks on."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any, get_args

from engine.spec import ProviderName

PROVIDER_NAMES: tuple[str, ...] = get_args(ProviderName)


def targets(providers: Sequence[str] = PROVIDER_NAMES) -> list[dict[str, Any]]:
    """Run a small network on each provider here; give each with its device, CPU flags and versions.

    `available` ones really ran it; of the others `reason` says why not, and `listed` whether the runtime claims to have it.
    A provider's library may end the process: whoever has to go on asks in a child, or for one provider at a time.
    """
    found = import_module("engine.measure.providers").available_targets(providers)
    return [asdict(target) for target in found]
