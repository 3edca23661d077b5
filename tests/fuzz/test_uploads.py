"""Foreign bytes that come in over HTTP cost nobody anything but the sender's own upload: nothing of the service dies or answers with 5xx."""

import json
import os
import random
import subprocess
import sys

import pytest

from .malformed import CASES
from .test_malformed import ROOT

pytestmark = pytest.mark.fuzz
SECONDS = 150


def test_whatever_is_uploaded_nothing_dies_and_nobody_is_blamed_but_its_sender():
    """`FUZZ_SEED=... make fuzz` repeats what one run has found."""
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(1 << 32)))
    argv = [sys.executable, "-m", "tests.fuzz.uploads", str(seed), str(1 << 30), str(SECONDS)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["errors"], told["blamed"], told["died"]) == ({}, {}, []), told
    assert told["lost_pool_processes"] == 0, told
    assert told["files"] >= min(len(CASES), 32), told
    assert told["states"].get("checking", 0) == 0, told
