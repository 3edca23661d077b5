"""Starts a child for one order."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sandbox.environment import environment_for
from sandbox.fork_server import VERBS, Forked, ForkServer
from sandbox.level import Level
from sandbox.quiet import Room
from sandbox.watch import Child, Limits, Process, Setting

Verb = Literal[
    "inspect_model",
    "inspect_archive",
    "inspect_dataset",
    "prunability",
    "run",
    "merge",
    "search",
    "variants",
    "trial",
    "targets",
    "training",
]
# Isolated: what lies in the workspace is never imported.
_CHILD = ("-I", "-m", "sandbox.child")
# Device files of NVIDIA, of AMD, of Intel and others, and of NPUs.
_DEVICES = ("nvidia*", "nvidia-caps/*", "kfd", "dri/*", "accel/*", "dxg")


@dataclass(frozen=True)
class Order:
    """What a child is to do, in which folder; the folder has a `tmp` folder in it.

    `quiet` is a folder in which the parents of all children of a host agree on who works and who measures, `tenant` is whose
    child it is.
    """

    verb: Verb
    workspace: Path
    payload: Mapping[str, Any] = field(default_factory=dict)
    quiet: Path | None = None
    tenant: str = ""
    # Whether it needs the machine's accelerators, and how strongly it must be confined to be given its order.
    devices: bool = False
    isolation: Level = "rlimits"


def start(order: Order, *, limits: Limits, server: ForkServer | None = None) -> Child:
    """Start a child for an order: own session, minimal environment, no descriptors but its control, events and log.

    With a `server` it may be forked from that, where the order is one of those that take longer to start than to do.
    """
    if server is not None and order.verb in VERBS:
        child = _connected(order, limits, partial(_forked, order, server))
        if child is not None:
            return child
    child = _connected(order, limits, partial(_started, order))
    assert child is not None
    return child


def _connected(order: Order, limits: Limits, make: Callable[[int, int], Process | None]) -> Child | None:
    control_read, control_write = os.pipe()
    events_read, events_write = os.pipe()
    process: Process | None = None
    try:
        process = make(control_read, events_write)
    finally:
        os.close(control_read)
        os.close(events_write)
        if process is None:
            os.close(control_write)
            os.close(events_read)
    if process is None:
        return None
    return Child(process, control_write, events_read, limits, _setting(order, limits))


def _started(order: Order, control: int, events: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *_CHILD, str(control), str(events), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=order.workspace,
        env=environment_for(order.workspace),
        pass_fds=(control, events),
        start_new_session=True,
    )


def _forked(order: Order, server: ForkServer, control: int, events: int) -> Forked | None:
    read, write = os.pipe()
    printed = os.fdopen(read, "rb", buffering=0)
    try:
        pid = server.fork(order.workspace, (control, events, write))
    finally:
        os.close(write)
    if pid is None:
        printed.close()
        return None
    return Forked(pid, printed)


def _setting(order: Order, limits: Limits) -> Setting:
    room = None if order.quiet is None else Room(order.quiet)
    needed = devices() if order.devices else ()
    setup = {
        "workspace": str(order.workspace),
        "devices": needed,
        "limits": {
            "cpu_s": int(limits.runtime_s * limits.threads) + 1,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "open_files": limits.open_files,
        },
    }
    told = {
        "verb": order.verb,
        "workspace": str(order.workspace),
        "payload": dict(order.payload),
        "takes_turns": order.quiet is not None,
        "runtime_s": limits.runtime_s,
    }
    return Setting(
        setup,
        json.dumps(told).encode() + b"\n",
        order.workspace,
        order.isolation,
        needed,
        room,
        order.tenant,
    )


def devices() -> tuple[str, ...]:
    """Give the device files of this machine's accelerators."""
    return tuple(str(path) for pattern in _DEVICES for path in sorted(Path("/dev").glob(pattern)))
