"""Peak memory, load time and first run of a network, each in a process that does nothing else.

As a module (`python -I -m engine.measure.memory`) it is that process.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import errors
from engine.errors import EngineError, ModelInvalidError, OutOfTimeError
from engine.measure.fresh_process import starter
from engine.report.run_facts import Memory
from engine.runtime.discovery import prove
from engine.runtime.gpu import memory_watch
from engine.runtime.network_files import stored_files
from engine.runtime.sessions import Feed, session
from engine.target import Target

_PR_SET_PDEATHSIG = 1
# So many may die before the network is to blame, as many as of a job.
_PROCESSES = 3


def store_feed(path: Path, feed: Feed) -> None:
    """Write arrays as an .npz, under whatever names the network's owner gave them: numpy.savez takes some for its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in feed.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)


def probe(model_path: Path, target: Target, feed_path: Path, *, timeout: float = 300.0, loads: bool = False) -> Memory:
    """Load the network in a fresh process and run it once on the arrays that `store_feed` wrote.

    The peak is the whole process's resident set, interpreter and runtime included: what a user would see. With `loads` the
    file is dropped from the page cache before (as far as the system does that for anyone), and is loaded a second time after.
    On a GPU the device's memory is told beside it, without what the provider takes before it has any network.

    Raises:
        EngineError: as loading and running would raise here; ModelInvalidError when the process dies each time.
        OutOfTimeError: after `timeout` seconds.
    """
    request = {
        "model": str(model_path),
        "feed": str(feed_path),
        "target": target.model_dump(mode="json"),
        "loads": loads,
    }
    try:
        # Who kills a process, such as a system without memory, means that one; a network that ends its process ends the next one too.
        answers = ((starter() or _ask_a_process)(request, timeout) for _ in range(_PROCESSES))
        answer = next((one for one in answers if one is not None), None)
    except TimeoutError as error:
        raise OutOfTimeError(f"Loading the network and running it once took more than {timeout:.0f} s") from error
    if answer is None:
        raise ModelInvalidError("The process that loaded the network on its own died")
    return _read(answer)


def _ask_a_process(request: Mapping[str, Any], timeout: float) -> Mapping[str, Any] | None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answers:
        try:
            # The answer has a descriptor of its own, because onnxruntime prints where it likes.
            done = subprocess.run(
                [sys.executable, "-I", "-m", "engine.measure.memory", str(writer)],
                input=json.dumps(request).encode(),
                pass_fds=[writer],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        finally:
            os.close(writer)
        answer = answers.read()
    if done.returncode != 0 or not answer:
        return None
    told: dict[str, Any] = json.loads(answer)
    return told


def answer_probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what a probe asks for, in this process, which must be a fresh one; gives the answer or the problem."""
    target = Target.model_validate(request["target"])
    try:
        return measure_here(
            Path(request["model"]), target, Path(request["feed"]), loads=request["loads"] is True
        ).model_dump()
    except EngineError as error:
        return error.problem()


def _read(answer: Mapping[str, Any]) -> Memory:
    if "code" not in answer:
        return Memory.model_validate(answer)
    kinds = {
        kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EngineError)
    }
    node = answer.get("node")
    raise kinds[str(answer["code"])](str(answer["message"]), node=str(node) if node else None)


def measure_here(model_path: Path, target: Target, feed_path: Path, *, loads: bool = False) -> Memory:
    """Load and run the network in this process; its peak so far is part of the answer."""
    # Starting the runtime, and proving that a provider runs, is no part of loading a network.
    prove(target.provider)
    if loads:
        _forget(model_path)
    with np.load(feed_path, allow_pickle=False) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    with memory_watch(target.provider) as device:
        start = time.perf_counter()
        loaded = session(model_path, target)
        after_load = time.perf_counter()
        loaded.run(feed)
        after_run = time.perf_counter()
    found = Memory(
        peak_rss_bytes=_peak_rss(),
        load_ms=(after_load - start) * 1e3,
        first_run_ms=(after_run - after_load) * 1e3,
        device_peak_bytes=device.peak_bytes,
    )
    if not loads:
        return found
    start = time.perf_counter()
    session(model_path, target)
    return found.model_copy(update={"warm_load_ms": (time.perf_counter() - start) * 1e3})


def _forget(model_path: Path) -> None:
    """Have the kernel drop a network's files from its page cache; it keeps what someone else has mapped or not yet written."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in stored_files(model_path):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak_rss() -> int:
    """Give this process's own peak; unlike getrusage's it does not start at the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process its peak memory")


def _die_with_parent() -> None:
    """Have the kernel end this process with the job's: nobody else would, after a kill -9 up there."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """Answer the request on stdin on the descriptor, with the measurement or the problem, as JSON."""
    _die_with_parent()
    descriptor = int(arguments[0])
    answer = answer_probe(json.loads(sys.stdin.buffer.read()))
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump(answer, out)


if __name__ == "__main__":
    main(sys.argv[1:])
