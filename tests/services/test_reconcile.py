"""What got lost is found again: leases, messages, waits."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from models import JobStatus, Unit, UnitStatus
from services import attempts, db, reconcile, retention

NEVER = 1e9


def once(service, **settings):
    reconcile.once(
        service.database, service.store, service.settings.model_copy(update=settings), service.messages.waiting
    )


def age(service, seconds, *columns):
    """Shift a unit's times into the past."""

    def shift(session):
        past = db.now(session) - timedelta(seconds=seconds)
        session.execute(update(Unit).values(dict.fromkeys(columns, past)))

    service.write(shift)


def test_nothing_lost_nothing_done(service):
    job = service.submit().job
    version = service.job(job.id).version
    once(service)
    assert len(service.messages.sent) == 1
    claim = service.claim()
    once(service)
    assert service.read(lambda session: session.get_one(Unit, claim.unit_id).status) == UnitStatus.RUNNING
    assert service.job(job.id).version == version + 1


def test_an_expired_lease_is_queued_again_and_sent(service):
    job = service.submit().job
    claim = service.claim(lease_s=0.01)
    time.sleep(0.05)
    once(service)
    assert service.job(job.id).status == JobStatus.QUEUED
    assert service.messages.sent == [("run.cpu", claim.unit_id)]
    assert service.claim().attempt == 2


def test_a_lost_message_is_sent_again_but_not_too_often(service):
    service.submit()
    unit_id = service.messages.take()
    once(service)
    assert service.messages.sent == []
    age(service, 20, "sent_at")
    once(service)
    assert service.messages.sent == [("run.cpu", unit_id)]
    service.messages.take()
    age(service, 20, "sent_at")
    once(service)
    assert service.messages.sent == [], "the second wait is twice as long"
    age(service, 40, "sent_at")
    once(service)
    assert service.messages.sent == [("run.cpu", unit_id)]


def test_a_long_queue_is_not_sent_again(service):
    for _ in range(3):
        service.submit()
    age(service, 1000, "sent_at")
    once(service)
    assert len(service.messages.sent) == 3


def test_a_broker_that_is_away_is_not_asked_to_take_more(service):
    service.messages.on = False
    service.submit()
    age(service, 1000, "sent_at")
    once(service)
    service.messages.on = True
    once(service)
    assert len(service.messages.sent) == 1


def test_a_unit_that_waits_after_a_loss_is_sent_when_its_time_has_come(service):
    job = service.submit().job
    claim = service.claim()
    with service.database.transaction() as session:
        # After many losses the pause is far longer than this test may take on a busy machine.
        session.get_one(Unit, claim.unit_id).losses = 6
        attempts.give_back(session, service.store, claim.unit_id, claim.token, service.settings, counted=True)
    once(service)
    assert service.messages.sent == []
    age(service, 60, "not_before")
    once(service)
    assert service.messages.sent == [("run.cpu", claim.unit_id)]
    assert service.claim() is not None
    assert service.job(job.id).status == JobStatus.RUNNING


def test_a_wait_over_the_limit_ends_the_job(service):
    job = service.submit().job
    age(service, 1, "pending_until")
    once(service)
    found = service.job(job.id)
    assert (found.status, found.problem["code"]) == (JobStatus.FAILED, "pending_limit")
    assert service.claim() is None


def test_many_reconcilers_do_the_work_once(service):
    for _ in range(3):
        service.submit()
        service.claim(lease_s=0.01)
    time.sleep(0.05)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: once(service), range(12)))
    assert len(service.messages.sent) == 3
    assert {service.claim().attempt for _ in range(3)} == {2}


def test_the_thread_repairs_until_it_is_stopped(service):
    job = service.submit().job
    service.claim(lease_s=0.01)
    settings = service.settings.model_copy(update={"reconcile_s": 0.05})
    thread = reconcile.Reconciler(service.database, settings, service.messages.waiting)
    thread.start()
    end = time.monotonic() + 60
    while service.job(job.id).status != JobStatus.QUEUED and time.monotonic() < end:
        time.sleep(0.02)
    thread.stop()
    assert service.job(job.id).status == JobStatus.QUEUED


def test_workspaces_go_with_their_units(service, tmp_path):
    service.submit()
    running = service.claim()
    service.submit()
    done = service.claim()
    assert service.finish(done)
    root = tmp_path / "work"
    for name in (
        running.unit_id,
        done.unit_id,
        "unt_unknown",
        running.job_id,
        done.job_id,
        "job_unknown",
        ".targets-x",
    ):
        (root / name / "1").mkdir(parents=True)
    reconcile.sweep_workspaces(service.database, root)
    assert {path.name for path in root.iterdir()} == {running.unit_id, running.job_id, ".targets-x"}


@pytest.mark.parametrize("hours", [0, 25])
def test_idempotency_keys_are_kept_for_a_day(service, hours):
    from models import Idempotency

    request = service.request()
    first = service.submit(request, idempotency_key="k")
    service.write(
        lambda session: session.execute(update(Idempotency).values(created_at=db.now(session) - timedelta(hours=hours)))
    )
    retention.apply(retention.Place(service.database, service.store, service.settings.data_dir), service.settings)
    assert (service.submit(request, idempotency_key="k").job.id == first.job.id) == (hours == 0)
