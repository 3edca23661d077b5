"""Whatever is uploaded is refused in words for its owner, or is something after all: nothing is our fault, nothing hangs, nothing dies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .malformed import CASES

ROOT = Path(__file__).resolve().parents[2]


def ends_of(*words):
    """Have each file inspected in a process of its own; gives how each has ended, by name."""
    argv = [sys.executable, "-m", "tests.fuzz.ends", *map(str, words)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {one.pop("name"): one for one in told}


@pytest.fixture(scope="module")
def ends():
    return ends_of("malformed")


def test_there_are_many():
    assert len(CASES) >= 90


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_words_or_taken(ends, name):
    told = ends[name]
    assert told["end"] in {"refused", "accepted", "runs"}, told
    if told["end"] == "refused":
        assert told["blame"] == "user", told
        assert told["text"].endswith((".", "!")), told
        assert "Traceback" not in told["text"]
        assert str(ROOT) not in told["text"]
