"""A search of real workers, children and trials, of which every part is killed in turn: nothing is lost, nothing done twice."""

from pathlib import Path

import pytest
from sqlalchemy import select

from models import Unit
from services import trials

from .conftest import STACKS, TENANT

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)
PROGRAM = (str(Path(__file__).with_name("study_worker.py")),)


def submit(system, inputs):
    """A job whose unit is a coordinator, before any worker sees it."""
    job_id = system.submit(inputs)
    with system.database.transaction() as session:
        session.scalars(select(Unit).where(Unit.job_id == job_id)).one().kind = "study"
    return job_id


def found(system, job_id):
    with system.database.reading() as session:
        return trials.list_trials(session, TENANT, job_id)


def kill_when(system, job_id, kind, count):
    """Kill the whole worker as soon as something has happened to the job so often, and start another one."""
    system.until(lambda _: kinds(system, job_id).count(kind) >= count or system.job(job_id).finished_at)
    assert system.job(job_id).problem is None, system.log()
    system.kill_tree(system.workers[-1])
    system.start_worker(queues="inspect,work", program=PROGRAM)


def kinds(system, job_id):
    told = system.events(job_id)
    return [event.data.get("because", event.type) if event.type in {"queued", "waits_for_children"} else event.type
            for event in told]  # fmt: skip


def test_a_search_whose_workers_are_killed_at_every_arrow_ends_once_with_every_trial(system):
    worker = system.start_worker(queues="inspect")
    inputs = system.inputs()
    worker.kill()
    worker.wait()
    system.workers.remove(worker)
    job_id = submit(system, inputs)
    system.start_worker(program=PROGRAM)
    # While the coordinator runs, before it has spawned.
    system.wait_event(job_id, "running")
    system.kill_tree(system.workers[-1])
    system.start_worker(program=PROGRAM)
    # Just after it has spawned.
    kill_when(system, job_id, "waits_for_children", 1)
    # Between two trials, and at the last one, as the continuation is queued.
    kill_when(system, job_id, "trial_ended", 1)
    kill_when(system, job_id, "trial_ended", 2)
    # The broker forgets every message there is.
    kill_when(system, job_id, "waits_for_children", 2)
    system.lose_broker()
    system.start_broker()
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    assert [(trial.number, trial.point["number"], trial.state) for trial in found(system, job_id)] == [
        (number, number, "succeeded") for number in range(4)
    ]
    assert kinds(system, job_id).count("trial_ended") == 4
    assert all(system.store.exists(TENANT, sha256) for sha256 in _blobs(system))
    system.assert_no_child_left()


def _blobs(system):
    from models import Blob

    with system.database.reading() as session:
        return session.scalars(select(Blob.sha256)).all()
