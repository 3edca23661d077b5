"""A job of any kind, from its spec and workspace to its report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.job import compress, profile
from engine.job.compress import Probe
from engine.report.values import AnyReport
from engine.spec import Profile, Spec


def run(
    spec: Spec,
    workspace: Path,
    on_event: Callable[[dict[str, Any]], None],
    *,
    quiet: Path | None = None,
    crashed_steps: frozenset[int] = frozenset(),
    only: frozenset[int] | None = None,
    probe: Probe | None = None,
) -> AnyReport:
    """Do what a spec asks for in a workspace; results are in its `out` folder when this returns.

    `engine.job.compress.run` and `engine.job.profile.run` say what the workspace holds and what is told. `only` names the targets
    of a profile (by index) that this process is to measure; `probe` measures peak memory and load time in a fresh process.

    Raises:
        EngineError: the job cannot be done; nothing is in `out`.
    """
    if isinstance(spec, Profile):
        return profile.run(spec, workspace, on_event, quiet=quiet, crashed_steps=crashed_steps, only=only, probe=probe)
    return compress.run(spec, workspace, on_event, quiet=quiet, crashed_steps=crashed_steps, probe=probe)
