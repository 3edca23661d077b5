"""A process that outlives the one with the tests, and ends what that one leaves behind when it is interrupted or killed."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

PROC = Path("/proc")
# In the environment of everything that these tests start.
MARK = "TESTS_RUN"


class Reaper:
    """Told of folders while it can be; what it knows is done when the pipe to it closes."""

    def __init__(self) -> None:
        run = secrets.token_hex(16)
        quiet = {name: value for name, value in os.environ.items() if name != MARK}
        argv = [sys.executable, "-I", __file__, f"{MARK}={run}"]
        # Ctrl-C is for the tests, which clear up by themselves where they can.
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=quiet, start_new_session=True, text=True)
        os.environ[MARK] = run

    def watch(self, folder: Path) -> None:
        """Have processes that name the folder ended, and the folder removed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End what is left, and wait until that is done."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _belongs(process: Path, mark: bytes, folders: list[str]) -> bool:
    try:
        named = (process / "cmdline").read_bytes()
        return mark in (process / "environ").read_bytes().split(b"\0") or any(
            os.fsencode(one) in named for one in folders
        )
    except OSError:
        return False


def _end(mark: bytes, folders: list[str]) -> None:
    for process in PROC.iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _belongs(process, mark, folders):
            os.kill(int(process.name), signal.SIGKILL)


def _main() -> None:
    import shutil

    folders = [line.strip() for line in sys.stdin]
    # Twice: one may have been starting another.
    for _ in range(2):
        _end(os.fsencode(sys.argv[1]), folders)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
