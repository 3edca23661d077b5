"""A run of the tests that is killed leaves no server behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from .servers import PATIENCE_S

STARTS = """
import subprocess, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from reaper import Reaper
reaper = Reaper()
reaper.watch(Path(sys.argv[2]))
# One that forgets whose it is but names the folder, and one that does not know of the folder.
wait = [sys.executable, "-c", "import time; time.sleep(1000)"]
named = subprocess.Popen([*wait, sys.argv[2]], env={}, start_new_session=True)
marked = subprocess.Popen(wait, start_new_session=True)
print(named.pid, marked.pid, flush=True)
time.sleep(1000)
"""


def test_a_run_that_is_killed_leaves_no_process_and_no_folder(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    argv = [sys.executable, "-c", STARTS, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as run:
        left = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        run.kill()
    gone, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert (len(gone), alive) == (2, [])
    end = time.monotonic() + PATIENCE_S
    while folder.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
