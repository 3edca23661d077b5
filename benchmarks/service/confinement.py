"""Measure what it costs to look at a network in the sandbox, and how soon one ends that ignores everything.

    python -m benchmarks.service.confinement [--runs 15] [--quick]

Both start Python, import the engine and inspect one small network. In the sandbox a keeper is started first, the child locks itself
down, its parent makes sure of it, and the answer is checked. As workers do it, the child is forked from a process that has loaded
the engine, and is confined and looked at in the same way. Then children that ignore all signals and flood their pipes are told to
end. Ends with code 1 where the sandbox costs more than 0.2 s, or where one of those uses a processor 5 s later.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import sandbox
from benchmarks import documents
from benchmarks.service.soak import network
from sandbox import processes

MOST_S, END_S = 0.2, 5.0
PATIENCE_S = 60.0
# It ends as a child does, without putting Python away.
BARE = "import os, sys, engine; from pathlib import Path; engine.inspect_model(Path(sys.argv[1])); os._exit(0)"
FLOOD = """
import os, signal, sys
import sandbox.child as child

def flood(_workspace, _payload, tell):
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    tell({"type": "progress"})
    while True:
        os.write(1, b"\\x1b[2J" * 10_000)

child._VERBS["inspect_model"] = flood
sys.exit(child.main(sys.argv[1:]))
"""


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.confinement", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="of each, in turn (default: %(default)d)")
    parser.add_argument("--quick", action="store_true", help="two runs of each: a trial, no result")
    asked = parser.parse_args()
    sandbox.compile_engine()
    confined: list[float] = []
    forked: list[float] = []
    bare: list[float] = []
    level = ""
    server = sandbox.ForkServer()
    for number in range(1 + (2 if asked.quick else asked.runs)):
        folder = Path(tempfile.mkdtemp(prefix="onnxpress-confinement-"))
        try:
            (folder / "model").mkdir()
            (folder / "model" / "model.onnx").write_bytes(network(0))
            (folder / "tmp").mkdir()
            seconds, level = in_the_sandbox(folder)
            as_workers_do, level_of_forked = in_the_sandbox(folder, server)
            plain = in_a_bare_process(folder)
            if level_of_forked != level:
                raise RuntimeError(f"forked it reaches {level_of_forked}, started {level}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        # The first ones read what later ones find in memory.
        if number:
            confined.append(seconds)
            forked.append(as_workers_do)
            bare.append(plain)
    server.close()
    ends = [end_of_a_flood() for _ in range(2 if asked.quick else asked.runs)]
    more = statistics.median(confined) - statistics.median(bare)
    markdown = _markdown(confined, forked, bare, ends, level)
    documents.store(
        "service",
        "confinement",
        {"confined_s": confined, "forked_s": forked, "bare_s": bare, "more_s": more, "level": level, "ends_s": ends},
        markdown,
        quick=asked.quick,
    )
    print(markdown)
    return int(more > MOST_S or max(ends) > END_S)


def in_the_sandbox(folder: Path, server: sandbox.ForkServer | None = None) -> tuple[float, str]:
    """Give the seconds of an inspection by a confined child, and how strongly it was confined."""
    order = sandbox.Order("inspect_model", folder, {})
    limits = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30)
    started = time.perf_counter()
    child = sandbox.start(order, limits=limits, server=server)
    outcome = child.wait(60)
    seconds = time.perf_counter() - started
    if outcome is None or outcome.kind != "done" or child.confinement is None:
        raise RuntimeError(f"the inspection ended as {outcome}")
    return seconds, child.confinement.level


def in_a_bare_process(folder: Path) -> float:
    """Give the seconds of the same inspection by a process with nothing around it."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", BARE, folder / "model" / "model.onnx"], check=True)
    return time.perf_counter() - started


def end_of_a_flood() -> float:
    """Give the seconds until nothing is left of a child that ignores all signals and floods its pipes."""
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-confinement-"))
    (folder / "work" / "tmp").mkdir(parents=True)
    (folder / "flood.py").write_text(FLOOD)
    order = sandbox.Order("inspect_model", folder / "work")
    limits = sandbox.Limits(runtime_s=PATIENCE_S, memory_bytes=2 << 30)
    try:
        # The package has a function of that name.
        with patch.object(sys.modules["sandbox.start"], "_CHILD", ("-I", str(folder / "flood.py"))):
            child = sandbox.start(order, limits=limits)
        while not any(event["type"] == "progress" for event in child.events()):
            if child.wait(0.05) is not None:
                raise RuntimeError("it ended before it was told to")
        time.sleep(0.5)
        all_of_it = [*processes.tree(child.pid)]
        started = time.perf_counter()
        child.kill()
        while any(Path(f"/proc/{pid}").exists() for pid in all_of_it):
            time.sleep(0.001)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _markdown(confined: list[float], forked: list[float], bare: list[float], ends: list[float], level: str) -> str:
    more = statistics.median(confined) - statistics.median(bare)
    rows = [
        [what, f"{statistics.median(taken):.2f} s", f"{min(taken):.2f} to {max(taken):.2f} s"]
        for what, taken in (
            (f"inspection in the sandbox, `{level}`", confined),
            ("the same, forked from a process that is ready, as workers do it", forked),
            ("inspection by a bare process", bare),
            ("end of a child that ignores all signals and floods its pipes", ends),
        )
    ]
    return (
        "### What the sandbox costs\n\n"
        f"An inspection of a small network, start of Python included, {len(confined)} times each in turn: the sandbox costs"
        f" **{more:+.2f} s** (at most {MOST_S:g}).\n\n" + documents.table(("what", "median", "least to most"), rows)
    )


if __name__ == "__main__":
    sys.exit(main())
