"""Landlock, the kernel's own walls for a process without rights: which files it may open, and whom it may signal."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.syscalls import ARCHITECTURES

_CREATE, _ADD, _RESTRICT = (
    ARCHITECTURES["x86_64"].numbers[f"landlock_{name}"] for name in ("create_ruleset", "add_rule", "restrict_self")
)
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
# How many rights on files each version knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_RIGHTS = 16
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BIND_TCP_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_SIGNALS = 0b11
_FIRST_WITH_NETWORK, _FIRST_WITH_SCOPES = 4, 6

READ = _READ_FILE | _READ_DIR
# Files and folders, but no links, sockets, pipes or devices; nothing is executed anywhere.
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
DEVICE = READ | _WRITE_FILE | _IOCTL_DEV


@dataclass(frozen=True)
class Rule:
    """A file, or a folder and all below it, and what may be done there."""

    path: Path
    rights: int


def version() -> int:
    """Give the version that the kernel has; 0 for none."""
    return max(0, _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION)))


def restrict(rules: Iterable[Rule]) -> None:
    """Give up everything on files but what the rules name, all TCP, and signals to processes outside.

    Paths that are not there are left out: they are not there afterwards either, for they cannot be made. OSError where the
    kernel has no Landlock.
    """
    has = version()
    if has == 0:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock")
    handled = (1 << _RIGHTS.get(has, _LATEST_RIGHTS)) - 1
    attributes = struct.pack("Q", handled)
    if has >= _FIRST_WITH_NETWORK:
        attributes += struct.pack("Q", _BIND_TCP_CONNECT_TCP)
    if has >= _FIRST_WITH_SCOPES:
        attributes += struct.pack("Q", _ABSTRACT_SOCKETS_SIGNALS)
    ruleset = _checked(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    try:
        for rule in rules:
            _add(ruleset, rule, handled)
        _checked(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule, handled: int) -> None:
    try:
        opened = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = rule.rights & handled
        if not rule.path.is_dir():
            rights &= _OF_FILES
        beneath = struct.pack("=Qi", rights, opened)
        _checked(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.c_char_p(beneath), ctypes.c_uint(0))
    finally:
        os.close(opened)


def _checked(number: int, *arguments: object) -> int:
    result = _call(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock: " + os.strerror(ctypes.get_errno()))
    return result


def _call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result: int = library.syscall(ctypes.c_long(number), *arguments)
    return result
