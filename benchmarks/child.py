"""Run one script's `work` in a fresh interpreter and say what it cost.

    python -I child.py SCRIPT REQUEST ANSWER [CORE ...]

Where cores are named, the script runs on them alone. SCRIPT defines `work(request) -> dict`. REQUEST is a JSON file; ANSWER gets what `work` gave, or the first line of its
error, with the time it took (by the wall's clock, and of processors, its children included) and the peak of this process's
resident memory. Imports are part of the memory but not of the time. Knows the standard library only, because it runs in the environments of other tools.
"""

import json
import os
import resource
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main(script: Path, request: Path, answer: Path, cores: list[int]) -> None:
    """Do the work and write the answer."""
    if cores:
        # Before anything is imported: libraries count the cores when they are loaded.
        os.sched_setaffinity(0, cores)
    # Last: a folder of the benchmarks may be called like a module of the standard library.
    sys.path.append(str(script.parent))
    told: dict[str, Any] = {}
    start = time.perf_counter(), cpu_seconds()
    try:
        work = runpy.run_path(str(script))["work"]
        start = time.perf_counter(), cpu_seconds()
        told["value"] = work(json.loads(request.read_text()))
    except Exception as error:  # noqa: BLE001 - whatever the other tool raises is its result
        traceback.print_exc()
        told["problem"] = describe(error)
    told["seconds"], told["cpu_seconds"] = time.perf_counter() - start[0], cpu_seconds() - start[1]
    told["peak_rss_bytes"] = peak_rss()
    answer.write_text(json.dumps(told))


def describe(error: BaseException) -> str:
    """Give the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def cpu_seconds() -> float:
    """Give the processor time so far, of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def peak_rss() -> int:
    """Give this process's own peak in bytes; unlike getrusage's it does not start at the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), [int(core) for core in sys.argv[4:]])
