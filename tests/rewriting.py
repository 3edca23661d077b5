"""Test files compiled once, each by one process, before all processes with tests read all of them.

pytest rewrites their assertions, which takes a process longer than to read what is rewritten already, and each would do it for itself.
Run as a script on some of the files this is one of those processes.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# pytest has no name of its own for it; with a pytest that does it in another way the files are rewritten where they are read.
from _pytest.assertion import rewrite


def rewrite_all(folder: Path) -> None:
    """Rewrite all files with tests that have changed, on all processors; returns when it is done."""
    if sys.dont_write_bytecode:
        return
    files = sorted(str(path) for path in folder.rglob("*.py") if path.name.startswith(("test_", "conftest")))
    shares = [files[place :: os.cpu_count()] for place in range(os.cpu_count() or 1)]
    for process in [subprocess.Popen([sys.executable, __file__, *share]) for share in shares if share]:
        process.wait()


def rewrite_files(files: Iterable[Path]) -> None:
    """Write what pytest would write when it reads each of them first."""
    for file in files:
        folder = rewrite.get_cache_dir(file)
        written = folder / f"{file.stem}{rewrite.PYC_TAIL}"
        if rewrite.try_makedirs(folder) and rewrite._read_pyc(file, written) is None:
            source, code = rewrite._rewrite_test(file, None)
            rewrite._write_pyc(None, code, source, written)


if __name__ == "__main__":
    rewrite_files(map(Path, sys.argv[1:]))
