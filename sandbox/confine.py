"""What the child does to itself before it touches a foreign byte."""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_OOM_FIRST = "1000"
# Above the limit that the parent enforces on resident memory: mapped weights and thread stacks take address space only.
_ADDRESS_SPACE_FACTOR = 4
_ADDRESS_SPACE_SPARE = 32 << 30


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit if that has already happened."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit(*, cpu_s: int, memory_bytes: int, file_bytes: int, open_files: int) -> None:
    """Set the kernel's limits. Memory is enforced by the parent; the address space is only a backstop."""
    _set(resource.RLIMIT_CORE, 0)
    # First a signal that tells why, then the end.
    _set(resource.RLIMIT_CPU, cpu_s, spare=5)
    _set(resource.RLIMIT_FSIZE, file_bytes)
    _set(resource.RLIMIT_NOFILE, open_files)
    _set(resource.RLIMIT_AS, memory_bytes * _ADDRESS_SPACE_FACTOR + _ADDRESS_SPACE_SPARE)
    # Where the machine runs out of memory, it is this process that goes.
    Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST)
    # Orphans below stay below, where the parent finds them.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def lockdown(workspace: Path) -> str:
    """Give up all rights but those on the workspace, as far as this kernel lets us, and give the level reached.

    This is where a file system sandbox and a system call filter belong; until then the level is `none`, and every job
    says so.
    """
    del workspace
    return "none"


def _set(which: int, value: int, *, spare: int = 0) -> None:
    _, hard = resource.getrlimit(which)
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(which, (min(value, highest), highest))


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
