"""Run a script of the benchmarks in a fresh process, in whichever environment, and know what it cost."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("child.py")
TIMEOUT_S = 3600.0
_QUIET = {"ORT_DISABLE_TELEMETRY": "1", "OLIVE_DISABLE_TELEMETRY": "1", "NO_COLOR": "1", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Spent:
    """What came of a script: its answer or a problem in words, the time of its work and its peak memory.

    timed_out: the problem is that its time was over.
    """

    value: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    timed_out: bool = False
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None


def spend(
    python: Path,
    script: Path,
    request: Mapping[str, Any],
    folder: Path,
    *,
    timeout: float = TIMEOUT_S,
    cores: Sequence[int] = (),
) -> Spent:
    """Run `work(request)` of `script` by `python`, on these cores alone if any; request, answer and log stay in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer, log = folder / "request.json", folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    asked.write_text(json.dumps(request, indent=2))
    started = time.monotonic()
    with log.open("wb") as stream:
        try:
            done = subprocess.run(
                [python, "-I", CHILD, script, asked.resolve(), answer.resolve(), *map(str, cores)],
                # Some peers leave temporary networks in the working directory.
                cwd=folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_QUIET},
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Spent(problem=f"did not end within {timeout:.0f} s", timed_out=True, seconds=timeout)
    if not answer.exists():
        return Spent(problem=_death(done.returncode), seconds=time.monotonic() - started)
    return Spent(**{"value": {}, **json.loads(answer.read_text())})


def _death(code: int) -> str:
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
