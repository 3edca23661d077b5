"""Sessions on a proven target: the one way to run a network."""

from engine.report.run_facts import SessionOptions
from engine.runtime.discovery import prove
from engine.runtime.loading import (
    Feed,
    ModelSource,
    Port,
    Session,
    captures,
    default_options,
    load,
    owned,
    session_options,
)
from engine.runtime.providers import exact_target, untimed_target
from engine.target import Target

__all__ = [
    "Feed",
    "ModelSource",
    "Port",
    "Session",
    "captures",
    "default_options",
    "exact_target",
    "owned",
    "session",
    "untimed_target",
]


def session(
    model: ModelSource, target: Target, *, optimise: bool = True, options: SessionOptions | None = None
) -> Session:
    """Load a network on a target, or raise: TargetUnavailableError rather than a silent run on the CPU.

    `options` take the place of the target's own, its number of threads and its provider's options included.
    """
    if target.provider != "cpu":
        prove(target.provider)
    if options is not None:
        names = ("threads", "provider_options", "inputs_on_device")
        target = target.model_copy(update={name: getattr(options, name) for name in names})
    return load(model, target, session_options(target, optimise=optimise, chosen=options))
