"""The system call filter: no network, no programs, no processes, nothing of other processes, nothing of the kernel's insides.

A deny-list over what a runtime, NumPy and PyTorch use; all that is newer than the list does not exist. Denied calls fail with
EPERM, so that a library that merely tries goes on.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sandbox.syscalls import NEWEST, Architecture, architecture

_SET_MODE_FILTER = 1
# For all threads; and without the slower branches that a filter brings on older kernels: times are measured here.
_TSYNC, _SPEC_ALLOW = 1, 4
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD, _CLONE_NAMESPACES = 0x0001_0000, 0x7E02_0080
_F_SETOWN, _F_SETOWN_EX = 8, 15
_AF_UNIX = 1
# Dying with the parent, being watched by it, being found by it: none is the child's to change. The last is Yama's.
_PRCTL = (1, 4, 35, 36, 0x59616D61)
_MOST_PROGRAM = 4096

# Whatever the arguments.
_DENIED = (
    "execve", "execveat", "socketpair", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise",
    "process_mrelease", "kcmp", "pidfd_getfd", "pidfd_send_signal", "tkill", "rt_sigqueueinfo",
    "rt_tgsigqueueinfo", "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount", "symlink", "symlinkat", "link",
    "linkat", "mknod", "mknodat", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt",
    "quotactl", "quotactl_fd", "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "personality",
    "shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl",
    "mq_open", "mq_unlink", "setsid", "setpgid", "setpriority", "ioprio_set", "migrate_pages", "move_pages",
    # The file system's walls know nothing of owners, modes and times.
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr",
    "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "utime", "utimes", "futimesat", "utimensat", "truncate",
    "inotify_init", "inotify_init1", "fanotify_init", "open_by_handle_at", "syslog", "lookup_dcookie", "vhangup",
    "uselib", "sysfs", "lsm_set_self_attr",
)  # fmt: skip
# Of whoever keeps children, besides: none of its own to start, none to end.
_OF_A_WORKER = ("fork", "vfork", "pidfd_open")
# Those that name a process, in their first argument: itself only, or also 0 for itself.
_ITSELF, _ITSELF_OR_0 = ("kill", "tgkill"), (
    "prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
)  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """What a process may do: `forks`, start processes of its own and end them; `devices`, talk to a driver's daemon."""

    forks: bool = False
    devices: bool = False

    def program(self, machine: Architecture, pid: int) -> bytes:
        """Give the filter for a process with this id."""
        code = [*_prologue(machine)]
        denied = _DENIED if self.forks else _DENIED + _OF_A_WORKER
        for name in denied:
            code += self._on(machine, name, [_fail(errno.EPERM)])
        code += self._on(machine, "clone3", [_fail(errno.ENOSYS)])
        code += self._on(machine, "clone", _clone(forks=self.forks))
        allowed = [_AF_UNIX] if self.devices else []
        code += self._on(machine, "socket", _unless(0, allowed))
        if not self.forks:
            for name in _ITSELF:
                code += self._on(machine, name, _unless(0, [pid]))
        for name in _ITSELF_OR_0:
            code += self._on(machine, name, _unless(0, [0, pid]))
        code += self._on(machine, "prctl", _if(0, _PRCTL if not self.forks else ()))
        code += self._on(machine, "fcntl", _if(1, (_F_SETOWN, _F_SETOWN_EX)))
        code.append(_statement(_RETURN, _ALLOW))
        assert len(code) < _MOST_PROGRAM
        return b"".join(code)

    @staticmethod
    def _on(machine: Architecture, name: str, body: Sequence[bytes]) -> list[bytes]:
        """Go into the body, which ends in a return, for one call; the number is still loaded after it."""
        if name not in machine.numbers:
            return []
        return [_jump(_EQUAL, machine.numbers[name], 0, len(body)), *body]


def install(chosen: Filter) -> None:
    """Filter this process's calls from now on, those of its threads and of all below it; OSError where the kernel refuses."""
    machine = architecture()
    if machine is None:
        raise OSError(errno.ENOSYS, "no table of system calls for this architecture")
    program = chosen.program(machine, os.getpid())
    kept = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, and where they are.
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept)))
    library = ctypes.CDLL(None, use_errno=True)
    for flags in (_TSYNC | _SPEC_ALLOW, _TSYNC):
        if library.syscall(machine.seccomp, _SET_MODE_FILTER, flags, ctypes.byref(described)) == 0:
            return
    raise OSError(ctypes.get_errno(), "the kernel takes no system call filter")


def _prologue(machine: Architecture) -> Iterator[bytes]:
    yield _statement(_LOAD, _ARCH)
    yield _jump(_EQUAL, machine.audit, 1, 0)
    # A call in the manner of another architecture has other numbers.
    yield _statement(_RETURN, _KILL_PROCESS)
    yield _statement(_LOAD, _NUMBER)
    if machine.foreign_bit is not None:
        yield _jump(_AT_LEAST, machine.foreign_bit, 0, 1)
        yield _fail(errno.ENOSYS)
    yield _jump(_GREATER, NEWEST, 0, 1)
    yield _fail(errno.ENOSYS)


def _clone(*, forks: bool) -> list[bytes]:
    if forks:
        # A process, but in no namespace of its own.
        return [_argument(0), _jump(_ANY_BIT, _CLONE_NAMESPACES, 0, 1), _fail(errno.EPERM), _statement(_RETURN, _ALLOW)]
    return [_argument(0), _jump(_ANY_BIT, _CLONE_THREAD, 1, 0), _fail(errno.EPERM), _statement(_RETURN, _ALLOW)]


def _unless(index: int, allowed: Sequence[int]) -> list[bytes]:
    return [
        _argument(index),
        *(part for value in allowed for part in (_jump(_EQUAL, value, 0, 1), _statement(_RETURN, _ALLOW))),
        _fail(errno.EPERM),
    ]


def _if(index: int, denied: Sequence[int]) -> list[bytes]:
    return [
        _argument(index),
        *(part for value in denied for part in (_jump(_EQUAL, value, 0, 1), _fail(errno.EPERM))),
        _statement(_RETURN, _ALLOW),
    ]


def _argument(index: int) -> bytes:
    # The lower half: ids, options and flags of interest are ints to the kernel, and both architectures are little-endian.
    return _statement(_LOAD, _ARGUMENTS + 8 * index)


def _fail(number: int) -> bytes:
    return _statement(_RETURN, _ERRNO | number)


def _statement(code: int, value: int) -> bytes:
    return struct.pack("HBBI", code, 0, 0, value)


def _jump(code: int, value: int, met: int, otherwise: int) -> bytes:
    return struct.pack("HBBI", code, met, otherwise, value)
