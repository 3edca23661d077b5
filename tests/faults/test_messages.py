"""Messages are hints: they may be lost, come twice, or find nobody who waits for them."""

import pytest
from sqlalchemy import select

from models import Event, Unit
from services import db, jobs, uploads

from .conftest import PATIENCE_S, STACKS, TENANT

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)


def unit_of(system, model):
    with system.database.reading() as session:
        return session.scalars(select(Unit).where(Unit.model_id == model.id)).one()


def test_a_message_that_comes_five_times_is_worked_on_once(system):
    model = system.upload_network()
    unit = unit_of(system, model)
    for _ in range(4):
        assert system.database.publisher.publish(unit.queue, unit.id)
    system.start_worker(concurrency=2)
    assert system.inspected(model).state == "ready"
    assert system.database.publisher.publish(unit.queue, unit.id)
    system.until(lambda _: system.database.publisher.waiting(unit.queue) == 0)
    # Whatever comes of the last message has come when both processes have done another unit.
    for later in [system.upload_network(seed) for seed in (1, 2, 3, 4)]:
        assert system.inspected(later).state == "ready"
    assert unit_of(system, model).attempt == 1
    with system.database.reading() as session:
        told = session.scalars(select(Event.type).where(Event.subject_id == model.id).order_by(Event.id)).all()
    assert told == ["created", "ready"]
    system.assert_no_child_left()


def test_a_process_that_dies_between_commit_and_message_loses_nothing(system):
    system.start_worker()
    # All that such a process leaves: the committed row.
    silent = db.Database.from_settings(system.settings)
    publishing, system.database = system.database, silent
    model = system.upload_network()
    system.database = publishing
    silent.dispose()
    assert system.inspected(model).state == "ready"


def test_uploads_are_accepted_while_the_broker_is_away(system):
    system.start_worker()
    assert system.inspected(system.upload_network(1)).state == "ready"
    # At this moment the worker is about to acknowledge: a failed acknowledgement must not make it deaf.
    system.lose_broker()
    model = system.upload_network(2)
    system.start_broker()
    assert system.inspected(model).state == "ready"


def test_a_unit_is_picked_up_at_once(system):
    # Nobody sends a message again: only the first one can have it picked up.
    system.start_worker(ONNXPRESS_RESEND_S="3600")
    for seed in (1, 2):
        model = system.upload_network(seed)
        assert system.inspected(model).state == "ready"
        unit = unit_of(system, model)
        assert unit.sent_at <= unit.started_at


def test_a_running_job_is_cancelled_within_seconds(system):
    system.start_worker()
    # Long enough that it cannot end before it is cancelled.
    job_id = system.submit(system.inputs(), passes=["simplify"] * 32)
    child = system.job_child()
    system.wait_event(job_id, "started")
    with system.database.transaction() as session:
        jobs.cancel(session, TENANT, job_id)
    child.wait(PATIENCE_S)
    job = system.wait_status(job_id, "cancelled")
    assert job.problem["code"] == "cancelled"
    system.assert_committed_once(job_id)
    system.assert_no_child_left()
    system.until(lambda _: not list((system.data_dir / "work").glob("unt_*")))
    # The worker goes on with the next unit.
    assert system.inspected(system.upload_network(1)).state == "ready"


def test_a_job_over_its_run_limit_ends_with_a_stable_reason(system):
    system.start_worker()
    job_id = system.submit(system.inputs(), limits={"max_runtime_s": 5})
    # It cannot end before its limit does.
    system.job_child().suspend()
    job = system.wait_final(job_id)
    assert (job.status, job.problem["code"]) == ("failed", "runtime_limit")
    system.assert_no_child_left()


def test_an_upload_that_is_no_network_is_rejected_and_leaves_no_bytes(system):
    from services import artifacts

    system.start_worker("inspect")
    model = system.upload(uploads.register_model, b"This is not a network.")
    found = system.until(
        lambda session: (row := artifacts.get_model(session, TENANT, model.id)).state != "checking" and row
    )
    assert (found.state, found.problem["code"]) == ("rejected", "model_invalid")
    system.until(lambda _: not list(system.store.blobs()))
