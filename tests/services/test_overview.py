"""Whose turn it is: a queued job's place is the one that workers give it."""

from datetime import timedelta

from sqlalchemy import select, update

from models import Job, Unit
from services import db, jobs, overview, queue, workers

from .conftest import TENANT

CPU = {"provider": "cpu", "cpu": "x", "flags": [], "onnxruntime": "1.32"}


def place(service, job):
    return service.read(lambda session: overview.places(session, [session.get_one(Job, job)]).get(job))


def submitted(service, model, tenant=TENANT, **more):
    request = service.request(model, **more)
    with service.database.transaction() as session:
        return jobs.submit(session, tenant, request).job.id


def beat(service, concurrency):
    told = {"host": "h", "pid": 1, "isolation": "none", "cores": 4, "concurrency": concurrency, "draining": False}
    service.write(
        lambda session: workers.heartbeat(
            session, "wrk_1", queues=["run.cpu", "run.cpu.train"], targets=[CPU], unavailable=(), **told
        )
    )


def claimed(service):
    """Have a worker take whose turn it is; gives its job."""
    unit = service.messages.take()
    with service.database.transaction() as session:
        return queue.claim_next(session, unit, worker_id="wrk_1", lease_s=30, queues=["run.cpu", "run.cpu.train"])


def backdated(service, job, seconds):
    """Have a running job as long ago begun."""
    with service.database.transaction() as session:
        session.get_one(Job, job).started_at = db.now(session) - timedelta(seconds=seconds)


def test_a_place_counts_what_runs_and_whose_turn_is_before(service):
    model, others = service.ready_model(), service.ready_model(tenant="other")
    first, second, third = (submitted(service, model) for _ in range(3))
    assert [place(service, job).ahead for job in (first, second, third)] == [0, 1, 2]
    assert place(service, first).slots == 0
    # Turns go round among tenants, however much one of them has sent.
    for _ in range(4):
        submitted(service, others, "other")
    assert [place(service, job).ahead for job in (first, second, third)] == [1, 3, 5]
    # Whether a few are asked for or many.
    at_once = service.read(
        lambda session: overview.places(session, session.scalars(select(Job).where(Job.tenant_id == TENANT)).all() * 2)
    )
    assert [at_once[job].ahead for job in (first, second, third)] == [1, 3, 5]
    with service.database.transaction() as session:
        session.execute(update(Unit).where(Unit.job_id == third).values(priority=5))
    assert [place(service, job).ahead for job in (first, second, third)] == [3, 5, 1]
    taken = [claimed(service).job_id for _ in range(2)]
    assert third in taken
    assert place(service, third) is None
    # One of the others' and one of these run, and another one of the others' may come before.
    assert place(service, first).ahead == 3


def test_when_a_job_may_begin_is_told_by_what_others_took(service):
    model = service.ready_model()
    beat(service, 1)
    first, second, third = (submitted(service, model) for _ in range(3))
    assert place(service, first).seconds == 0
    # Nothing has been done here yet.
    assert place(service, third).seconds is None
    claim = claimed(service)
    assert claim.job_id == first
    with service.database.transaction() as session:
        session.get_one(Unit, claim.unit_id).started_at -= timedelta(seconds=60)
    service.finish(claim)
    assert place(service, second).seconds == 0
    assert 55 < place(service, third).seconds < 65
    # A job that runs has foreseen itself what it takes; how far its step is says nothing of the whole.
    claim = claimed(service)
    backdated(service, second, 20)
    told = [{"type": "estimate", "expected_s": 200.0}, {"type": "progress", "step": 0, "fraction": 0.9}]
    service.write(lambda session: queue.progress(session, claim.unit_id, claim.token, told))
    assert 175 < place(service, third).seconds < 185
    assert 0.09 < service.read(lambda session: overview.share_done(session, session.get_one(Job, second))) < 0.11
    beat(service, 2)
    assert place(service, third).seconds == 0
