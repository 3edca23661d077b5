"""Ids sort by time, times keep their zone."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from models import TRANSITIONS, JobStatus, UnitStatus, UtcDateTime, following, is_final, new_id, sources


def test_ids_sort_by_time_and_do_not_repeat():
    ids = []
    for _ in range(5):
        ids.append(new_id("job"))
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert len({new_id("job") for _ in range(1000)}) == 1000
    assert all(len(found) == len("job_") + 26 for found in ids)


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_times_come_back_in_utc(dialect):
    column = UtcDateTime()
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    stored = column.process_bind_param(moment, dialect)
    found = column.process_result_value(stored, dialect)
    assert found == moment
    assert found.tzinfo is UTC


def test_naive_times_are_refused():
    with pytest.raises(ValueError, match="without a zone"):
        UtcDateTime().process_bind_param(datetime(2026, 3, 1), sqlite.dialect())  # noqa: DTZ001 - what is refused


@pytest.mark.parametrize("states", TRANSITIONS)
def test_every_state_leads_to_an_end(states):
    assert set(TRANSITIONS[states]) == set(states)
    for state in states:
        reached, todo = set(), [state]
        while todo:
            now = todo.pop()
            reached.add(now)
            todo += [after for after in following(now) if after not in reached]
        assert any(is_final(after) for after in reached), state


def test_states_of_two_kinds_with_one_word_are_apart():
    assert JobStatus.CANCELLING in following(JobStatus.RUNNING)
    assert JobStatus.CANCELLING not in following(UnitStatus.RUNNING)


def test_sources_invert_the_table():
    assert sources(UnitStatus.RUNNING) == (UnitStatus.QUEUED,)
    assert set(sources(JobStatus.CANCELLED)) == {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING}
