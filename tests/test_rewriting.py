"""What is rewritten beforehand is what pytest reads."""

import subprocess
import sys
from importlib.util import cache_from_source

from . import rewriting


def test_pytest_finds_rewritten_what_was_rewritten_before(tmp_path):
    file = tmp_path / "test_one.py"
    file.write_text("def test_one():\n    found = [1]\n    assert found == [2]\n")
    rewriting.rewrite_files([file])
    (written,) = (tmp_path / "__pycache__").iterdir()
    before = written.stat()
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", str(file)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    # Only what is rewritten tells values, and nobody has written it anew.
    assert "assert [1] == [2]" in done.stdout
    after = written.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert written.name != cache_from_source("test_one.py")
