"""Sessions on a proven target: the one way to run a network."""

from engine.report.values import SessionOptions
from engine.runtime.discovery import prove
from engine.runtime.loading import Feed, ModelSource, Port, Session, default_options, load, session_options
from engine.target import Target

__all__ = ["Feed", "ModelSource", "Port", "Session", "default_options", "session"]


def session(
    model: ModelSource, target: Target, *, optimise: bool = True, options: SessionOptions | None = None
) -> Session:
    """Load a network on a target, or raise: TargetUnavailableError rather than a silent run on the CPU.

    `options` take the place of the target's own, its number of threads included.
    """
    if target.provider != "cpu":
        prove(target.provider)
    if options is not None:
        target = target.model_copy(update={"threads": options.threads})
    return load(model, target, session_options(target, optimise=optimise, chosen=options))
