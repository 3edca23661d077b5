"""Which queue a unit waits in: one for inspections, one for the runs of each execution provider."""

INSPECT_QUEUE = "inspect"
_RUN = "run."


def run_queue(provider: str) -> str:
    """Give the queue of the jobs for a provider: only workers that have proven it listen there."""
    return _RUN + provider


def is_run_queue(name: str) -> bool:
    """Tell whether jobs wait in the queue."""
    return name.startswith(_RUN)


def provider_of(name: str) -> str | None:
    """Give the provider that a queue's units need, None where any worker will do."""
    return name.removeprefix(_RUN) if is_run_queue(name) else None
