"""Whoever holds the token works; everybody else changes nothing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from models import JobStatus, Unit, UnitStatus
from services import attempts, jobs, queue
from services.problems import RUNTIME_LIMIT

from .conftest import TENANT


def step(service, function, claim, *args, **kwargs):
    return service.write(lambda session: function(session, claim.unit_id, claim.token, *args, **kwargs))


def crash(service, claim):
    return service.write(
        lambda session: attempts.crashed(session, service.store, claim.unit_id, claim.token, service.settings)
    )


def give_back(service, claim, *, counted):
    return service.write(
        lambda session: attempts.give_back(
            session, service.store, claim.unit_id, claim.token, service.settings, counted=counted
        )
    )


def expire(service, claim):
    with service.database.transaction() as session:
        unit = session.scalars(select(Unit).where(Unit.id == claim.unit_id)).one()
        attempts.expire_lease(session, service.store, unit, service.settings)


def unit_of(service, claim):
    return service.read(lambda session: session.get_one(Unit, claim.unit_id))


def test_twenty_messages_give_one_claim(service):
    service.submit()
    unit_id = service.messages.take()
    with ThreadPoolExecutor(8) as pool:
        claims = [claim for claim in pool.map(lambda _: service.claim(unit_id), range(20)) if claim]
    assert len(claims) == 1
    assert unit_of(service, claims[0]).attempt == 1


def test_a_claim_has_all_that_the_worker_needs(service):
    model, dataset = service.ready_model(content=b"net"), service.ready_dataset(content=b"data!")
    job = service.submit(service.request(model, dataset, limits={"max_runtime_s": 100, "max_memory_mb": 512})).job
    claim = service.claim()
    assert (claim.job_id, claim.kind, claim.attempt) == (job.id, "run", 1)
    assert claim.declarations == {"data": {"metric": "top1"}}
    assert {item.path: item.size for item in claim.inputs} == {"model/model.onnx": 3, "data/data.npz": 5}
    assert (claim.runtime_s, claim.memory_mb) == (100, 512)
    assert claim.order.payload["spec"] == job.spec
    assert service.job(job.id).status == JobStatus.RUNNING


def test_only_the_token_renews(service):
    service.submit()
    claim = service.claim()
    assert step(service, queue.renew, claim, lease_s=30, cpu_s=1.5)
    assert not service.write(lambda session: queue.renew(session, claim.unit_id, "other", lease_s=30, cpu_s=9.0))
    assert service.read(lambda session: queue.look(session, claim.unit_id, "other")) == "lost"
    assert service.read(lambda session: queue.look(session, claim.unit_id, claim.token)) == "held"


def test_a_superseded_attempt_changes_nothing(service):
    job = service.submit().job
    first = service.claim()
    expire(service, first)
    second = service.claim()
    assert second.attempt == 2
    before = service.stored()
    version = service.job(job.id).version
    assert not service.finish(first)
    assert not step(service, queue.renew, first, lease_s=30, cpu_s=9.0)
    assert not step(service, queue.progress, first, [{"type": "started"}])
    assert not step(service, attempts.cancelled, first)
    assert not crash(service, first)
    assert not give_back(service, first, counted=True)
    assert not service.write(
        lambda session: attempts.fail(session, service.store, first.unit_id, first.token, RUNTIME_LIMIT)
    )
    assert service.stored() == before
    assert service.job(job.id).version == version
    assert service.finish(second)
    assert not service.finish(second)
    assert service.events(job.id).count("succeeded") == 1


def test_finish_while_cancelling_ends_cancelled(service):
    job = service.submit().job
    claim = service.claim()
    before = service.stored()
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    assert service.finish(claim)
    assert service.job(job.id).status == JobStatus.CANCELLED
    assert service.job(job.id).report_digest is None
    assert service.stored() == before


def test_a_crash_inside_a_step_leaves_it_out_next_time(service):
    job = service.submit(service.request(passes=[{"type": "simplify"}, {"type": "simplify"}])).job
    claim = service.claim()
    step(service, queue.progress, claim, [{"type": "step_started", "step": 0}, {"type": "step_finished", "step": 0}])
    step(service, queue.progress, claim, [{"type": "step_started", "step": 1, "pass": "simplify"}])
    assert service.job(job.id).steps[1]["status"] == "running"
    assert crash(service, claim)
    assert service.job(job.id).status == JobStatus.QUEUED
    again = service.claim()
    assert again.order.payload["crashed_steps"] == [1]
    assert again.attempt == 2


def test_what_a_running_job_warns_of_is_told_at_once_and_kept_once(service):
    job = service.submit().job
    claim = service.claim()
    warning = {"type": "warning", "message": "Samples are fed one at a time." + "x" * 600}
    step(service, queue.progress, claim, [{"type": "started"}, warning, warning])
    assert service.job(job.id).warnings.count(warning["message"]) == 1
    assert service.events(job.id).count("warning") == 2


def test_the_estimate_of_a_running_job_is_an_event_and_what_goes_on(service):
    job = service.submit().job
    claim = service.claim()
    said = "About 55 s (33 s to 2 min) and 0.5 GB of memory: a sample takes 171 ms here."
    told = [{"type": "started"}, {"type": "estimate", "message": said, "expected_s": 55}]
    step(service, queue.progress, claim, told)
    assert service.job(job.id).progress == {"message": said, "expected_s": 55.0}
    # It holds while steps tell of themselves.
    step(service, queue.progress, claim, [{"type": "progress", "step": 0, "fraction": 0.5}])
    assert service.job(job.id).progress == {"step": 0, "fraction": 0.5, "expected_s": 55.0}
    assert "estimate" in service.events(job.id)


def test_crashes_and_losses_are_counted_apart(service):
    job = service.submit().job
    for _ in range(service.settings.max_losses):
        expire(service, service.claim())
    for _ in range(service.settings.max_crashes):
        assert crash(service, service.claim())
    assert service.job(job.id).status == JobStatus.QUEUED
    last = service.claim()
    assert crash(service, last)
    assert service.job(job.id).problem["code"] == "process_crashed"
    assert service.job(job.id).status == JobStatus.FAILED


def test_too_many_losses_fail(service):
    job = service.submit().job
    for _ in range(service.settings.max_losses + 1):
        expire(service, service.claim())
    assert service.job(job.id).problem["code"] == "worker_lost"


def test_a_drained_worker_counts_nothing(service):
    service.submit()
    claim = service.claim()
    assert give_back(service, claim, counted=False)
    unit = unit_of(service, claim)
    assert (unit.status, unit.losses, unit.crashes) == (UnitStatus.QUEUED, 0, 0)
    assert service.claim().attempt == 2


def test_a_counted_loss_waits_before_the_next_try(service):
    service.submit()
    claim = service.claim()
    assert give_back(service, claim, counted=True)
    assert service.messages.sent == []
    assert service.claim(claim.unit_id) is None
    assert unit_of(service, claim).losses == 1


def test_lost_and_cancelled_ends_cancelled(service):
    job = service.submit().job
    claim = service.claim()
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    expire(service, claim)
    assert service.job(job.id).status == JobStatus.CANCELLED
    assert service.messages.sent == []


def test_run_time_is_counted_over_attempts(service):
    job = service.submit(service.request(limits={"max_runtime_s": 100})).job
    claim = service.claim()
    with service.database.transaction() as session:
        session.execute(update(Unit).where(Unit.id == claim.unit_id).values(spent_s=70.0))
    assert give_back(service, claim, counted=False)
    again = service.claim()
    assert 29 < again.runtime_s <= 30
    with service.database.transaction() as session:
        session.execute(update(Unit).where(Unit.id == claim.unit_id).values(spent_s=100.0))
    assert crash(service, again)
    assert service.job(job.id).problem["code"] == "runtime_limit"


def test_a_child_cannot_write_what_it_wants_into_events(service):
    job = service.submit().job
    claim = service.claim()
    told = [
        {"type": "succeeded"},
        {"type": ["x"]},
        {"no": "type"},
        {"type": "progress", "step": 10**9, "fraction": float("nan"), "message": "x" * 10_000, "evil": {"a": 1}},
        {"type": "progress", "step": 0, "fraction": 7, "message": 5},
        {"type": "step_finished", "step": 40, "status": "hacked"},
        {"type": "measuring", "expected_s": float("inf")},
        {"type": "measuring", "expected_s": "soon"},
    ]
    assert step(service, queue.progress, claim, told)
    found = service.read(lambda session: jobs.events(session, TENANT, job.id))[2:]
    assert [event.type for event in found] == ["progress", "progress", "step_finished", "measuring", "measuring"]
    assert found[0].data == {"message": "x" * 500}
    assert found[1].data == {"step": 0, "fraction": 1.0}
    assert found[2].data == {"step": 40}
    assert found[3].data == found[4].data == {}


def test_events_are_read_on_from_any_point(service):
    job = service.submit().job
    claim = service.claim()
    step(service, queue.progress, claim, [{"type": "measuring", "what": str(number)} for number in range(5)])
    every = service.read(lambda session: jobs.events(session, TENANT, job.id))
    assert [event.id for event in every] == sorted({event.id for event in every})
    rest = service.read(lambda session: jobs.events(session, TENANT, job.id, after=every[2].id))
    assert [event.id for event in rest] == [event.id for event in every[3:]]


@pytest.mark.parametrize("kind", ["drop", "unknown"])
def test_unknown_units_are_not_there(service, kind):
    assert service.claim(f"unt_{kind}") is None
