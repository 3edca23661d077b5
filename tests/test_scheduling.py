"""The order and the grouping of tests name rooms and files that are there."""

from pathlib import Path

import pytest

from . import scheduling

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("named", [*scheduling.ALONE, *scheduling.TOGETHER, *scheduling.LONG])
def test_what_is_named_is_there(named):
    assert (ROOT / named).exists()


def test_the_longest_begins_first_and_short_ones_keep_their_order():
    ids = ["tests/models/test_base.py::a", "tests/client/test_cli.py::b", "tests/faults/test_kills.py::c", "tests/client/test_cli.py::a"]  # fmt: skip
    assert [one[-1] for one in sorted(ids, key=scheduling.urgency_of)] == ["c", "a", "b", "a"]


def test_a_room_that_is_alone_and_files_that_share_a_service_go_to_one_process():
    assert scheduling.scope_of("tests/faults/test_kills.py::a") == scheduling.scope_of("tests/faults/test_units.py::b")
    assert len({scheduling.scope_of(f"{path}::a") for path in scheduling.TOGETHER}) == 1
    assert scheduling.scope_of("tests/e2e/test_backup.py::a") == "tests/e2e/test_backup.py"
