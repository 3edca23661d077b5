"""A job of any kind, from its spec and workspace to its report."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import assert_never

from engine.job import compress, profile
from engine.job.frame import Event, Frame, Probe
from engine.measure import memory
from engine.report.values import AnyReport
from engine.runtime.host_lock import Host, HostLock
from engine.spec import Compress, Profile, Search, Spec


def run(
    spec: Spec,
    workspace: Path,
    on_event: Callable[[Event], None],
    *,
    lock_file: Path | Host | None = None,
    crashed_steps: frozenset[int] = frozenset(),
    only: frozenset[int] | None = None,
    probe: Probe | None = None,
    deadline: float | None = None,
    names: Mapping[str, str] | None = None,
) -> AnyReport:
    """Do what a spec asks for in a workspace; results are in its `out` folder when this returns.

    Args:
        spec: what to do.
        workspace: what `engine.job.compress.run` or `engine.job.profile.run` says.
        on_event: told what happens, with JSON values only.
        lock_file: what all jobs of a host lock, together while they work and alone while they measure.
        crashed_steps: steps during which an earlier attempt died; they are refused, not tried again.
        only: the targets of a profile (by index) that this process is to measure; by default all.
        probe: measures peak memory and load time in a fresh process.
        deadline: seconds of `time.monotonic()` at which the job is ended from outside.
        names: what the owner calls the `student` and the `teacher`, for the report.

    Raises:
        EngineError: the job cannot be done; nothing is in `out`.
    """
    lock = HostLock(lock_file)
    match spec:
        case Compress():
            probe = probe or memory.probe
            return compress.run(spec, Frame(workspace, on_event, lock, probe, crashed_steps, deadline, names or {}))
        case Profile():
            probe = probe or partial(memory.probe, loads=True)
            return profile.run(spec, Frame(workspace, on_event, lock, probe, crashed_steps, deadline), only=only)
        case Search():
            from engine.job import search  # noqa: PLC0415  # it loads scipy, which is slow

            probe = probe or memory.probe
            return search.run(spec, Frame(workspace, on_event, lock, probe, deadline=deadline))
        case _:
            assert_never(spec)
