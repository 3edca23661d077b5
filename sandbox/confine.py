"""What a child's processes do to themselves before one of them touches a foreign byte."""

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import engine
from sandbox import landlock, seccomp
from sandbox.landlock import DEVICE, READ, WRITE, Rule

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_OOM_FIRST = "1000"
# Above the limit that the parent enforces on resident memory: mapped weights and thread stacks take address space only.
_ADDRESS_SPACE_FACTOR = 4
_ADDRESS_SPACE_SPARE = 32 << 30
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x1000_0000, 0x4000_0000, 0x0800_0000
_CAPABILITIES_V3 = 0x2008_0522

# Libraries, and what they read of the machine to decide how to run on it.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system", "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip
# What a driver's library needs to find its devices.
_SYSTEM_OF_DEVICES = (
    "/proc/devices", "/proc/modules", "/proc/driver", "/proc/sys", "/sys", "/opt", "/etc/nvidia", "/etc/OpenCL",
    "/etc/vulkan", "/run/nvidia-persistenced",
)  # fmt: skip
_SHARED_MEMORY = Path("/dev") / "shm"


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
    os.umask(0o077)
    if sys.platform != "linux":
        return
    # Where the machine runs out of memory, it is this process that goes.
    Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST)
    # Orphans below stay below, where the parent finds them.
    take_orphans(take=True)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def take_orphans(*, take: bool) -> None:
    """Have what loses its parent below this process become its child, or no longer."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(take))


def separate() -> None:
    """Go into a user, network and IPC namespace of this process's own, where the system lets it: a wall behind the others."""
    if sys.platform != "linux":
        return
    user, group = os.geteuid(), os.getegid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def give_up_capabilities() -> None:
    """Be nobody special, whoever started this."""
    if sys.platform != "linux":
        return
    header, none = struct.pack("Ii", _CAPABILITIES_V3, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def lock_down(workspace: Path, devices: Iterable[str] = ()) -> None:
    """Give up all rights but those on the workspace, as far as this kernel lets us. What came of it is seen from outside."""
    give_up_capabilities()
    named = [Path(name) for name in devices]
    with suppress(OSError):
        landlock.restrict(_rules(workspace, named))
    with suppress(OSError):
        seccomp.install(seccomp.Filter(devices=bool(named)))


def keep_to_children() -> None:
    """Give up all but starting and ending processes below, which are confined themselves."""
    give_up_capabilities()
    with suppress(OSError):
        seccomp.install(seccomp.Filter(forks=True, devices=True))


def _rules(workspace: Path, devices: list[Path]) -> Iterator[Rule]:
    yield Rule(workspace, WRITE)
    yield Rule(Path("/dev/null"), DEVICE)
    # The kernel knows a folder of /proc for as long as somebody has it open.
    os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    yield Rule(Path("/proc/self"), READ)
    readable = [*_SYSTEM, *_python(), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    if devices:
        readable += _SYSTEM_OF_DEVICES
        yield Rule(_SHARED_MEMORY, WRITE)
    for device in devices:
        yield Rule(device, DEVICE)
    for name in readable:
        if name.startswith("/"):
            yield Rule(Path(name), READ)


def _python() -> Iterator[str]:
    """Give where the interpreter, what is installed for it, and our own two packages lie."""
    yield from {path for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        yield f"{prefix}/lib"
        yield f"{prefix}/pyvenv.cfg"
    # An environment may take packages from another one.
    yield from (entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"})
    # Not all of where they are imported from: of a checkout, that is also where its data may lie.
    for package in (engine, sys.modules[__package__]):
        yield from map(str, package.__path__)


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
