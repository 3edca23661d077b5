"""Which worker takes a unit: a queue for inspections, two for each execution provider; in them, classes of machines."""

from collections.abc import Iterable, Mapping
from typing import Any

INSPECT_QUEUE = "inspect"
# Ends the name of a queue whose jobs train.
TRAIN = ".train"
_RUN = "run."


def run_queue(provider: str, *, trains: bool = False) -> str:
    """Give the queue of the jobs for a provider: only workers that have proven it listen there.

    Jobs that train wait in a queue of their own: a worker without PyTorch, or of a version before, never hears of them.
    """
    return _RUN + provider + TRAIN * trains


def run_queues(target: Mapping[str, Any]) -> list[str]:
    """Give the queues whose jobs a worker takes for a target that it has proven."""
    provider = str(target.get("provider"))
    return [run_queue(provider), *([run_queue(provider, trains=True)] if can_train(target) else [])]


def can_train(target: Mapping[str, Any]) -> bool:
    """Tell whether a worker can train networks for a target that it has proven; workers of a version before say nothing."""
    return bool((target.get("training") or {}).get("available"))


def is_run_queue(name: str) -> bool:
    """Tell whether jobs wait in the queue."""
    return name.startswith(_RUN)


def provider_of(name: str) -> str | None:
    """Give the provider that a queue's units need, None where any worker will do."""
    return name.removeprefix(_RUN).removesuffix(TRAIN) if is_run_queue(name) else None


def is_train_queue(name: str) -> bool:
    """Tell whether the jobs of a queue train, so that only workers with PyTorch listen there."""
    return is_run_queue(name) and name.endswith(TRAIN)


def target_class(target: Mapping[str, Any]) -> str:
    """Name the class of machines that a proven target belongs to: its provider, and its GPU with what drives it or its flags.

    Kernels, and with them what is fast, differ between classes. A unit may ask for one; without it any worker of the
    provider takes it.
    """
    flags = "+".join(target.get("flags") or ())
    return f"{target.get('provider')}/{_gpu(target) or flags or 'any'}"


def _gpu(target: Mapping[str, Any]) -> str | None:
    if not target.get("gpu"):
        return None
    versions = [f"{name} {target[name]}" for name in ("driver", "cuda", "cudnn") if target.get(name)]
    return ", ".join([str(target["gpu"]), *versions])


def target_classes(targets: Iterable[Mapping[str, Any]]) -> list[str]:
    """Give the classes of all targets that a worker has proven."""
    return sorted({target_class(target) for target in targets})
