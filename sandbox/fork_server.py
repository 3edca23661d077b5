"""A process that has loaded what inspections need, kept by a worker: their children are forked from it instead of started anew.

It is started before any foreign byte is there, touches none itself, and does nothing but fork (`sandbox.forking`). What is forked
locks itself down as every child does, and is looked at by its parent as every child is.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sandbox import confine
from sandbox.environment import environment, environment_for

_log = logging.getLogger(__name__)
# Orders that take longer to start than to do, and that there are many of. What measures memory is started anew: a process
# that has loaded nothing for it.
VERBS = frozenset({"inspect_model", "inspect_archive", "inspect_dataset", "prunability"})
_PROGRAM = ("-I", "-m", "sandbox.forking")
# It loads the engine before it answers for the first time.
_PATIENCE_S = 60.0
_ANSWER = 1 << 10
# Where it has failed so often, one after the other, it does not work here.
_TRIES = 3


class Forked:
    """A child that was forked elsewhere and is ours: what its watcher needs of it."""

    def __init__(self, pid: int, printed: IO[bytes]) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = printed
        self._exit_code: int | None = None

    def kill(self) -> None:
        """Kill it, where it has not been waited for."""
        if self._exit_code is None:
            # Another thread may have waited for it just now.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; gives the exit code, or the signal as a negative number."""
        if self._exit_code is None:
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._exit_code


class ForkServer:
    """Keeps the process, and starts it when it is first asked for, or is gone. Use it from a thread that outlives it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._one = threading.Lock()
        self._failed = 0

    def fork(self, workspace: Path, descriptors: Sequence[int]) -> int | None:
        """Give the process id of a new child that is this process's own; None where there is none to be had this way.

        `descriptors`: what it hears, what it tells, and what it prints to. After None nobody else may be given them: a child that
        is late could have them too, and ends as soon as they are closed.
        """
        if sys.platform != "linux" or self._failed >= _TRIES:
            return None
        order = json.dumps({"workspace": str(workspace), "environment": environment_for(workspace)}).encode()
        with self._one:
            try:
                pid = self._asked(order, descriptors)
            except (OSError, ValueError) as error:
                self._failed += 1
                _log.warning("the fork server gives no child (%s): it is started anew", type(error).__name__)
                self._end()
                return None
            self._failed = 0
            return pid

    def close(self) -> None:
        """End the process; children go on."""
        with self._one:
            self._end()

    def _asked(self, order: bytes, descriptors: Sequence[int]) -> int:
        link = self._link or self._start()
        with _taking_orphans():
            socket.send_fds(link, [order], descriptors)
            pid = int(json.loads(link.recv(_ANSWER))["pid"])
        # Whose end could not be waited for could not be watched either; ChildProcessError.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return pid

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *_PROGRAM, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                # With more threads nothing could be forked safely; looking at files has no use for them.
                env={**environment(), "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        ours.settimeout(_PATIENCE_S)
        self._link = ours
        return ours

    def _end(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def _taking_orphans() -> Iterator[None]:
    """Have what loses its parent below this process become its own child, for as long as it takes to get the one asked for."""
    confine.take_orphans(take=True)
    try:
        yield
    finally:
        confine.take_orphans(take=False)
