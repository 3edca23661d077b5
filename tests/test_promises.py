"""Every promise names the tests that hold it, and these are there; no test of faults is left unnamed."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOLD = (ROOT / "docs" / "promises.md").read_text()
PROMISES = TOLD.partition("\n## ")[0]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TOLD)))


def _names_in(path):
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_is_named_is_there(path, name):
    assert name.startswith("test_")
    assert name in _names_in(path)


def test_every_promise_names_one():
    rows = re.findall(r"^\| P\d \|.*$", PROMISES, re.MULTILINE)
    assert [row[2:4] for row in rows] == [f"P{number}" for number in range(1, 10)]
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", row), row


def test_every_fault_that_is_tried_is_told():
    tried = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert tried == {path for path, _ in NAMED if path.startswith("tests/faults/")}
