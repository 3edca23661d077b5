"""Starts a child for one order."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sandbox.level import Level
from sandbox.quiet import Room
from sandbox.watch import Child, Limits, Setting

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
# These name devices and libraries that a GPU provider needs; everything else of our environment stays here.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")


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


def start(order: Order, *, limits: Limits) -> Child:
    """Start a child for an order: own session, minimal environment, no descriptors but its control, events and log."""
    control_read, control_write = os.pipe()
    events_read, events_write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *_CHILD, str(control_read), str(events_write), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=order.workspace,
            env=_environment(order.workspace),
            pass_fds=(control_read, events_write),
            start_new_session=True,
        )
    except OSError:
        os.close(control_write)
        os.close(events_read)
        raise
    finally:
        os.close(control_read)
        os.close(events_write)
    return Child(process, control_write, events_read, limits, _setting(order, limits))


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


def _environment(workspace: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        "HOME": str(workspace),
        "TMPDIR": str(workspace / "tmp"),
        "LANG": "C.UTF-8",
        "ORT_DISABLE_TELEMETRY": "1",
        # They would be looked for in all that is installed, and could send what they see elsewhere.
        "PYDANTIC_DISABLE_PLUGINS": "__all__",
    }
