"""A search of real workers and children, of which every part is killed in turn: nothing is lost, nothing done twice."""

from pathlib import Path

import pytest
from sqlalchemy import select

import engine
from models import Blob, Unit
from services import fronts, jobs, trials

from .conftest import STACKS, TENANT

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)
PROGRAM = (str(Path(__file__).with_name("study_worker.py")),)
SPEC = {"kind": "search", "goal": {"minimise": "size"}, "space": {"train": False}}


def submit(system, inputs, **fields):
    """A search; its message waits for a worker."""
    model, data = inputs
    request = jobs.Request(model.id, data.id, engine.read_spec({**SPEC, **fields}), {})
    with system.database.transaction() as session:
        return jobs.submit(session, TENANT, request).job.id


def found(system, job_id):
    with system.database.reading() as session:
        return trials.list_trials(session, TENANT, job_id)


def front(system, job_id):
    """Numbers and sizes of the points, and whether their networks are stored."""
    with system.database.reading() as session:
        points = fronts.front(session, TENANT, job_id).trials
    return (
        [point.number for point in points],
        [point.values["size_bytes"] for point in points],
        [point.artifact_digest is not None for point in points],
    )


def kill_when(system, job_id, kind, count):
    """Kill the whole worker as soon as something has happened to the job so often, and start another one."""
    system.until(lambda _: kinds(system, job_id).count(kind) >= count or system.job(job_id).finished_at)
    assert system.job(job_id).problem is None, system.log()
    system.kill_tree(system.workers[-1])
    system.start_worker(program=PROGRAM)


def kinds(system, job_id):
    told = system.events(job_id)
    return [event.data.get("because", event.type) if event.type in {"queued", "waits_for_children"} else event.type
            for event in told]  # fmt: skip


def test_a_search_whose_workers_are_killed_at_every_arrow_ends_once_with_every_trial(system):
    system.start_worker(program=PROGRAM)
    job_id = submit(system, system.inputs())
    # While the coordinator runs, before it has spawned.
    system.wait_event(job_id, "running")
    system.kill_tree(system.workers[-1])
    system.start_worker(program=PROGRAM)
    # Just after it has spawned trials; before that it has spawned parts of the library.
    kill_when(system, job_id, "waits_for_children", 2)
    # Between two trials, and at the last one, as the continuation is queued.
    kill_when(system, job_id, "trial_ended", 1)
    kill_when(system, job_id, "trial_ended", 2)
    # The broker forgets every message there is.
    kill_when(system, job_id, "waits_for_children", 3)
    system.lose_broker()
    system.start_broker()
    # It asks for the network of the trial that it ends with.
    kill_when(system, job_id, "goes_on", 1)
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    assert [(trial.number, trial.point["widths"]["group"], trial.state) for trial in found(system, job_id)] == [
        (number, 100 - number, "succeeded") for number in range(1, 5)
    ]
    assert kinds(system, job_id).count("trial_ended") == 4
    # The front of the same search without a kill: what its candidates are follows from their numbers alone.
    assert front(system, job_id) == ([4, 2, 1], [96, 98, 99], [True] * 3)
    assert job.summary["search"]["chosen"] == 4
    with system.database.reading() as session:
        blobs = session.scalars(select(Blob.sha256)).all()
        parts = session.scalars(select(Unit.payload).where(Unit.job_id == job_id, Unit.kind == "variants")).all()
    assert sorted(payload["part"] for payload in parts) == ["first", "second"]
    assert all(system.store.exists(TENANT, sha256) for sha256 in blobs)
    system.assert_no_child_left()
