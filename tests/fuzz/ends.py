"""How what is made of foreign bytes ends, each file in a process of its own: `python -m tests.fuzz.ends malformed | networks SEED COUNT SECONDS`.

The process is forked from one that has loaded all libraries, so that hundreds take seconds. One line of JSON for each file.
"""

import itertools
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

import onnx_ir  # noqa: F401 - loaded once, for all
import onnxruntime  # noqa: F401

import engine
from engine.graph import io
from engine.runtime.sessions import session
from engine.target import Target
from sandbox import messages

from .malformed import CASES
from .networks import Networks

# Of processor time, and until it is ended from outside: what a worker's limits on an inspection are, but shorter.
_CPU_S, _WALL_S = 10, 60
_BYTES = 6 << 30
_FILES = {"network": "model.onnx", "npz": "data.npz", "safetensors": "data.safetensors", "archive": "archive.zip"}


def inspected(kind, folder):
    """What the service does with an upload."""
    path = folder / _FILES[kind]
    if kind == "network":
        found = engine.inspect_model(path)
    elif kind == "archive":
        (folder / "out").mkdir()
        found = engine.inspect_archive(path, folder / "out", limit=1 << 28)
    else:
        found = engine.inspect_dataset(path, metric=None)
    # What a parent takes of its child.
    messages.read(json.dumps({"type": "result", "value": found.model_dump(mode="json")}).encode())


def loaded(folder):
    """What a job does first with a network: read it as a graph, and have the runtime load it."""
    path = folder / _FILES["network"]
    io.load(path)
    session(path, Target(provider="cpu", threads=1))


def end_of(kind, make):
    """Give how it ends: accepted, runs, refused with a sentence, by an error that nobody foresaw, by a signal, or not in time."""
    inside, outside = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inside)
        _work(kind, make, outside)
    os.close(outside)
    told, end = b"", time.monotonic() + _WALL_S
    while select.select([inside], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(inside, 1 << 16)
        if not part:
            break
        told += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(inside)
    status = os.waitpid(pid, 0)[1]
    found = json.loads(told) if told else {}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        found |= {"end": "late" if number in {signal.SIGXCPU, signal.SIGKILL} else "crashed", "signal": number}
    return found


def _work(kind, make, outside):
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            content, found["what"] = make()
            (Path(folder) / _FILES[kind]).write_bytes(content)
            inspected(kind, Path(folder))
            found["end"] = "accepted"
            if kind == "network":
                loaded(Path(folder))
                found["end"] = "runs"
        except engine.EngineError as error:
            if "end" not in found:
                found |= {"end": "refused", "blame": error.blame, "text": error.message}
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is what is looked for
            # A network that the runtime does not load is told so at the start of its job.
            if "end" not in found:
                found |= {"end": "unforeseen", "text": f"{type(error).__name__}: {error}"[:500]}
    os.write(outside, json.dumps(found).encode())
    os._exit(0)


def main(words):
    """Print the ends."""
    if words[0] == "malformed":
        for name, (kind, make) in CASES.items():
            told = end_of(kind, lambda make=make: (make(), []))
            sys.stdout.write(json.dumps({"name": name, **told}) + "\n")
        return
    seed, count, seconds = int(words[1]), int(words[2]), float(words[3])
    end = time.monotonic() + seconds
    for number in itertools.takewhile(lambda number: number < count and time.monotonic() < end, itertools.count()):
        told = end_of("network", lambda number=number: Networks(f"{seed}/{number}").make())
        sys.stdout.write(json.dumps({"name": f"{seed}/{number}", **told}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
