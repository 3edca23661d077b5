"""The fork server's own process: loads what inspections need, then forks a child for each that asks. `python -I -m sandbox.forking`.

It hears from its parent alone, and reads from it which folder a child is for, with the child's descriptors. It has one thread, for
what is forked from a process with more may wait for one that is not there any more.
"""

import gc
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import engine
from sandbox import child, confine
from sandbox.fork_server import VERBS

_ORDER = 1 << 16
_DESCRIPTORS = 3


def main(argv: Sequence[str]) -> NoReturn:
    """Fork until the parent is gone."""
    link, parent = socket.socket(fileno=int(argv[0])), int(argv[1])
    link.set_inheritable(False)
    confine.die_with_parent(parent)
    gc.disable()
    for name in VERBS:
        # The front door loads what a name stands for when it is first asked for.
        getattr(engine, name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        sys.exit("sandbox.forking: a library has started threads, so that nothing can be forked")
    # What is loaded by now stays, and a collector that went through it would copy it in every child, where it is switched on.
    gc.collect()
    gc.freeze()
    while True:
        order, descriptors, _, _ = socket.recv_fds(link, _ORDER, _DESCRIPTORS)
        if not order:
            os._exit(0)
        pid = _orphan(link, json.loads(order), descriptors, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        link.send(json.dumps({"pid": pid}).encode())


def _orphan(link: socket.socket, order: dict[str, Any], descriptors: Sequence[int], parent: int) -> int:
    """Fork a child whose own parent is gone when this returns, so that it is this process's parent's; gives its process id."""
    told, telling = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            if os.fork() == 0:
                os.setsid()
                os.write(telling, str(os.getpid()).encode())
                for descriptor in (told, telling, link.detach()):
                    os.close(descriptor)
                _be_child(order, descriptors, parent)
        finally:
            os._exit(0)
    os.close(telling)
    os.waitpid(between, 0)
    with os.fdopen(told, "rb") as pid:
        return int(pid.read())


def _be_child(order: dict[str, Any], descriptors: Sequence[int], parent: int) -> NoReturn:
    """Be what would have been started anew: the same folder, environment and descriptors."""
    control, events, printed = descriptors
    for number in (1, 2):
        os.dup2(printed, number)
    os.close(printed)
    os.chdir(order["workspace"])
    os.environ.clear()
    os.environ.update(order["environment"])
    # It is remembered from the first time that somebody asked.
    tempfile.tempdir = None
    child.keep(control, events, parent)


if __name__ == "__main__":
    main(sys.argv[1:])
