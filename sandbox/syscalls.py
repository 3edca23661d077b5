"""What the system call filter needs to know of an architecture: its numbers, from the kernel's own tables."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Numbers that every architecture has shared since 5.1.
_SHARED = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444,
    "landlock_add_rule": 445, "landlock_restrict_self": 446, "process_mrelease": 448, "fchmodat2": 452, "statmount": 457,
    "listmount": 458, "lsm_set_self_attr": 460,
}  # fmt: skip
# The newest number looked at; what is newer does not exist for a child.
NEWEST = 462

_X86_64 = {
    "kill": 62, "fcntl": 72, "fork": 57, "vfork": 58, "clone": 56, "execve": 59, "execveat": 322, "socket": 41,
    "socketpair": 53, "prctl": 157, "prlimit64": 302, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129,
    "rt_tgsigqueueinfo": 297, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "mount": 165,
    "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "symlink": 88, "symlinkat": 266,
    "link": 86, "linkat": 265, "mknod": 133, "mknodat": 259, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "keyctl": 250, "add_key": 248, "request_key": 249, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "sethostname": 170,
    "setdomainname": 171, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "quotactl": 179, "acct": 163,
    "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "personality": 135, "shmget": 29,
    "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semtimedop": 220, "semctl": 66, "msgget": 68, "msgsnd": 69,
    "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241, "setsid": 112, "setpgid": 109, "setpriority": 141,
    "ioprio_set": 251, "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314,
    "migrate_pages": 256, "move_pages": 279, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
    "lremovexattr": 198, "fremovexattr": 199, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
    "truncate": 76, "inotify_init": 253, "inotify_init1": 294, "fanotify_init": 300, "open_by_handle_at": 304,
    "syslog": 103, "lookup_dcookie": 212, "vhangup": 153, "uselib": 134, "sysfs": 139,
}  # fmt: skip

_AARCH64 = {
    "kill": 129, "fcntl": 25, "clone": 220, "execve": 221, "execveat": 281, "socket": 198, "socketpair": 199,
    "prctl": 167, "prlimit64": 261, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "mount": 40, "umount2": 39,
    "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "symlinkat": 36, "linkat": 37, "mknodat": 33,
    "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218,
    "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294,
    "reboot": 142, "swapon": 224, "swapoff": 225, "sethostname": 161, "setdomainname": 162, "quotactl": 60, "acct": 89,
    "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "personality": 92, "shmget": 194,
    "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semtimedop": 192, "semctl": 191, "msgget": 186,
    "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181, "setsid": 157, "setpgid": 154,
    "setpriority": 140, "ioprio_set": 30, "sched_setaffinity": 122, "sched_setscheduler": 119, "sched_setparam": 118,
    "sched_setattr": 274, "migrate_pages": 238, "move_pages": 239, "fchmod": 52, "fchmodat": 53, "fchown": 55,
    "fchownat": 54, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
    "fremovexattr": 16, "utimensat": 88, "truncate": 45, "inotify_init1": 26, "fanotify_init": 262,
    "open_by_handle_at": 265, "syslog": 116, "lookup_dcookie": 18, "vhangup": 58,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Its name for audits, the number of each call, of the two that install filters and limits too, and of foreign ABIs."""

    audit: int
    numbers: Mapping[str, int]
    seccomp: int
    # Calls of another ABI have this bit (x32).
    foreign_bit: int | None = None


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "x86_64": Architecture(0xC000003E, MappingProxyType(_X86_64 | _SHARED), seccomp=317, foreign_bit=0x4000_0000),
        "aarch64": Architecture(0xC00000B7, MappingProxyType(_AARCH64 | _SHARED), seccomp=277),
    }
)


def architecture() -> Architecture | None:
    """Give this machine's; None for one without a table."""
    return ARCHITECTURES.get(platform.machine())
