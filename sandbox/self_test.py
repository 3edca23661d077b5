"""What a process that is locked down tries, to show that it cannot."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def tried(canary: Path, parent: int) -> dict[str, str]:
    """Try to open a file outside, a socket, a process and the parent; give `refused` or `done` for each."""
    return {
        "files": _try(lambda: os.close(os.open(canary, os.O_RDONLY))),
        "network": _try(lambda: socket.socket(socket.AF_INET).close()),
        "processes": _try(_fork),
        "signals": _try(lambda: os.kill(parent, 0)),
    }


def _try(action: Callable[[], None]) -> str:
    try:
        action()
    except PermissionError:
        return "refused"
    except OSError as error:
        # Not there to be tried is not refused.
        return f"failed: {type(error).__name__}"
    return "done"


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
