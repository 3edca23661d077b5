"""Whoever starts children sees to it that they need not compile the engine, each of them all of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sandbox; print(sandbox.compile_engine())"


@pytest.fixture
def copy(tmp_path):
    """A copy of the engine and the sandbox in which nothing is compiled."""
    for name in ("engine", "sandbox"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def compiled(copy, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM], cwd=copy, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), {path.parent.parent.name for path in copy.glob("engine/job/__pycache__/*.pyc")}


def test_what_only_children_import_is_compiled_before_they_do(copy):
    assert compiled(copy) == ("True", {"job"})


def test_nothing_is_written_where_that_is_not_wanted(copy):
    assert compiled(copy, "-B") == ("False", set())
