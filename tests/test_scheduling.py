"""The order and the grouping of tests name rooms and files that are there."""

from itertools import chain
from pathlib import Path

import pytest

from . import scheduling

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "named", [*scheduling.ALONE, *scheduling.WHOLE, *chain(*scheduling.TOGETHER), *scheduling.LONG]
)
def test_what_is_named_is_there(named):
    assert (ROOT / named).exists()


def test_the_longest_begins_first_and_short_ones_keep_their_order():
    ids = ["tests/models/test_base.py::a", "tests/client/test_cli.py::b", "tests/faults/test_kills.py::c", "tests/client/test_cli.py::a"]  # fmt: skip
    assert [one[-1] for one in sorted(ids, key=scheduling.urgency_of)] == ["c", "a", "b", "a"]


def test_a_room_that_is_alone_and_files_that_go_together_go_to_one_process():
    for room in ("measure", "train"):
        files = [f"tests/engine/{room}/{name}.py::a" for name in ("test_one", "test_other")]
        assert len({scheduling.scope_of(one) for one in files}) == 1
    assert [len({scheduling.scope_of(f"{path}::a") for path in files}) for files in scheduling.TOGETHER] == [1, 1, 1, 1]
    assert scheduling.scope_of("tests/e2e/test_backup.py::a") == "tests/e2e/test_backup.py"


def test_what_kills_goes_to_two_processes():
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert there <= set(chain(*scheduling.TOGETHER))
