"""What is older than it may be goes, what something names stays, and one process at a time does it."""

import os
import time
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from models import Artifact, Audit, Chore, Event, Idempotency, Job, JobLabel, Model, Unit, Worker
from services import artifacts, catalog, db, jobs, metrics, retention, workers
from services.retention import Place

TENANT = "default"
LONG_AGO = timedelta(days=400)


@pytest.fixture
def place(service):
    return Place(service.database, service.store, service.settings.data_dir)


def settings(service, **fields):
    return service.settings.model_copy(update=fields)


def done(service, **fields):
    """A job that has ended with a result, long ago."""
    request = service.request(**fields)
    job = service.submit(request, idempotency_key=f"k {time.monotonic_ns()}").job
    if service.job(job.id).status == "queued":
        assert service.finish(service.claim())
    return aged(service, job)


def aged(service, job):
    def age(session):
        past = db.now(session) - LONG_AGO
        session.execute(update(Job).where(Job.id == job.id).values(finished_at=past))

    service.write(age)
    return service.job(job.id)


def rows(service, table):
    return service.read(lambda session: session.scalar(select(func.count()).select_from(table)))


def test_by_default_jobs_live_for_ever(service, place):
    job = done(service)
    retention.apply(place, service.settings)
    assert service.job(job.id).status == "succeeded"
    assert service.read(lambda session: jobs.report(session, TENANT, job.id))


def test_a_finished_job_goes_with_all_that_only_it_had(service, place):
    model = service.ready_model()
    before = service.stored()
    job = done(service, model=model, labels={"branch": "main"})
    counts = {table: rows(service, table) for table in (Job, Unit, JobLabel, Idempotency)}
    assert counts == {Job: 1, Unit: 2, JobLabel: 1, Idempotency: 1}
    assert service.stored() - before
    assert retention.count(place, settings(service, keep_jobs_days=30))["jobs"] == 1
    assert retention.apply(place, settings(service, keep_jobs_days=30))["jobs"] == 1
    assert service.stored() == before
    assert {table: rows(service, table) for table in counts} == {Job: 0, Unit: 1, JobLabel: 0, Idempotency: 0}
    subjects = service.read(lambda session: set(session.scalars(select(Event.subject_id))))
    assert subjects == {model.id}
    assert service.read(lambda session: set(session.scalars(select(Model.id)))) == {model.id}
    assert job.output_model_id != model.id


def test_young_and_unfinished_jobs_stay(service, place):
    done(service)
    young = service.submit().job
    service.finish(service.claim())
    waiting = service.submit().job
    assert retention.apply(place, settings(service, keep_jobs_days=30))["jobs"] == 1
    assert service.job(young.id).status == "succeeded"
    assert service.job(waiting.id).status == "queued"


@pytest.mark.parametrize("name", ["alias", "tag", "job", "retry", "answer", "child"])
def test_what_something_names_stays(service, place, name):
    kept = done(service)
    output = kept.output_model_id
    if name == "alias":
        change = catalog.Changes(alias="production")
        service.write(lambda session: catalog.update_model(session, TENANT, output, change))
    if name == "tag":
        change = catalog.Changes(tags=["best"])
        service.write(lambda session: catalog.update_model(session, TENANT, output, change))
    if name == "job":
        service.submit(service.request(service.read(lambda session: session.get_one(Model, output))))
    if name in {"retry", "answer"}:
        other = service.submit().job
        column = Job.retry_of if name == "retry" else Job.cached_from
        service.write(lambda session: session.execute(update(Job).where(Job.id == other.id).values({column: kept.id})))
    if name == "child":
        model = service.upload()
        service.write(
            lambda session: session.execute(update(Model).where(Model.id == model.id).values(parent_id=output))
        )
    assert retention.apply(place, settings(service, keep_jobs_days=30))["jobs"] == 0
    assert service.job(kept.id).output_model_id == output
    assert service.read(lambda session: jobs.report(session, TENANT, kept.id))
    assert service.read(lambda session: artifacts.get_model(session, TENANT, output)).artifact_digest
    assert _expiring(service, kept, keep_jobs_days=30) == {}


def _expiring(service, job, **fields):
    return service.read(lambda session: retention.expiring(session, [job.id], settings(service, **fields)))


def test_when_something_goes_is_known_before(service):
    job = done(service)
    assert _expiring(service, job, keep_jobs_days=30) == {job.id: job.finished_at + timedelta(days=30)}
    assert _expiring(service, job, keep_jobs_days=0) == {}
    assert _expiring(service, service.submit().job, keep_jobs_days=30) == {}


def test_a_chain_goes_from_its_end(service, place):
    model = service.ready_model()
    for _ in range(3):
        job = done(service, model=model)
        model = service.read(lambda session, output=job.output_model_id: session.get_one(Model, output))
    assert retention.count(place, settings(service, keep_jobs_days=30))["jobs"] == 1
    assert retention.apply(place, settings(service, keep_jobs_days=30))["jobs"] == 3
    assert rows(service, Job) == 0


def test_bytes_and_reports_that_another_job_has_too_stay(service, place):
    first, second = done(service), done(service)
    assert first.id != second.id
    outputs = [
        service.read(lambda session, one=job.output_model_id: session.get_one(Model, one)) for job in (first, second)
    ]
    assert outputs[0].artifact_digest == outputs[1].artifact_digest
    service.write(
        lambda session: session.execute(
            update(Job)
            .where(Job.id == second.id)
            .values(report_digest=first.report_digest, finished_at=db.now(session))
        )
    )
    assert retention.apply(place, settings(service, keep_jobs_days=30))["jobs"] == 1
    for digest in (outputs[1].artifact_digest, first.report_digest):
        found = service.read(lambda session, one=digest: session.get_one(Artifact, (TENANT, one)))
        assert all(service.store.exists(TENANT, file.sha256) for file in found.files)


def test_a_job_that_is_named_meanwhile_stays(service, place):
    """The list of what goes was made before somebody asked for more work on the result."""
    job = done(service)
    before = service.read(db.now)
    service.submit(service.request(service.read(lambda session: session.get_one(Model, job.output_model_id))))
    assert not service.write(lambda session: retention._remove_job(session, service.store, job.id, before))
    assert service.job(job.id)


def test_events_of_finished_jobs_go_and_the_job_stays(service, place):
    old, running = done(service), service.submit().job
    asked = settings(service, keep_events_days=7)
    assert retention.count(place, asked)["events"] == len(service.events(old.id)) > 0
    retention.apply(place, asked)
    assert service.events(old.id) == []
    assert service.events(running.id) == ["queued"]
    assert service.job(old.id).status == "succeeded"


def test_old_results_answer_no_longer(service, place):
    job = done(service)
    assert service.job(job.id).cache_key is not None
    asked = settings(service, keep_cache_days=7)
    assert retention.apply(place, asked)["answers"] == 1
    assert service.job(job.id).cache_key is None
    assert retention.apply(place, asked)["answers"] == 0


def test_rows_of_the_past_go(service, place):
    service.submit(idempotency_key="k")

    def fill(session):
        past = db.now(session) - LONG_AGO
        session.execute(update(Idempotency).values(created_at=past))
        moment = {"tenant_id": TENANT, "key_id": "k", "action": "a", "request_id": "r"}
        session.add_all(
            [Audit(id="aud_1", created_at=past, **moment), Audit(id="aud_2", created_at=db.now(session), **moment)]
        )
        for name in ("wrk_1", "wrk_2"):
            told = {
                "host": "h",
                "pid": 1,
                "queues": [],
                "concurrency": 1,
                "targets": [{"provider": name}],
                "isolation": "none",
            }
            workers.heartbeat(session, name, **told)
        session.execute(update(Worker).where(Worker.id == "wrk_1").values(seen_at=past))

    service.write(fill)
    expected = {"idempotency_keys": 1, "audit": 1, "workers": 1}
    found = retention.count(place, service.settings)
    assert {name: found[name] for name in expected} == expected
    found = retention.apply(place, service.settings)
    assert {name: found[name] for name in expected} == expected
    assert service.read(lambda session: set(session.scalars(select(Worker.id)))) == {"wrk_2"}
    assert service.read(lambda session: set(session.scalars(select(Audit.id)))) == {"aud_2"}


def test_bytes_that_no_row_names_go_when_they_are_old(service, place):
    kept = service.ready_model()
    stray = service.store.put(TENANT, [b"never registered"], limit=100)
    rule = next(rule for rule in retention.RULES if rule.name == "stray_bytes")
    moment = service.read(db.now)
    assert rule.count(place, moment - LONG_AGO) == rule.remove(place, moment - LONG_AGO)[0] == 0
    assert service.store.exists(TENANT, stray.sha256)
    assert rule.count(place, moment + LONG_AGO) == rule.remove(place, moment + LONG_AGO)[0] == 1
    assert not service.store.exists(TENANT, stray.sha256)
    files = service.read(lambda session: artifacts.get_artifact(session, TENANT, kept.artifact_digest).files)
    assert all(service.store.exists(TENANT, file.sha256) for file in files)


def test_what_died_on_this_disk_goes_when_it_is_old(service, place):
    place.workspaces.mkdir(exist_ok=True)
    past = time.time() - LONG_AGO.total_seconds()
    for name in ("old", "young"):
        (place.incoming / name).write_bytes(b"x")
        (place.workspaces / f".targets-{name}").mkdir()
    for path in (place.incoming / "old", place.workspaces / ".targets-old"):
        os.utime(path, (past, past))
    expected = {"uploads": 1, "workspaces": 1}
    found = retention.count(place, service.settings)
    assert {name: found[name] for name in expected} == expected
    found = retention.apply(place, service.settings)
    assert {name: found[name] for name in expected} == expected
    assert {path.name for path in place.incoming.iterdir()} == {"young"}
    assert {path.name for path in place.workspaces.iterdir()} == {".targets-young"}


def test_one_process_at_a_time_and_not_before_it_is_due(service, place):
    done(service)
    asked = settings(service, keep_jobs_days=30)
    rule = next(rule for rule in retention.RULES if rule.name == "jobs")
    assert retention._claimed(service.database, rule)
    assert not retention._claimed(service.database, rule)
    assert not retention.apply_due(place, asked)
    assert rows(service, Job) == 1
    service.write(
        lambda session: session.execute(update(Chore).values(done_at=db.now(session) - timedelta(minutes=61)))
    )
    assert not retention.apply_due(place, asked)
    assert rows(service, Job) == 0


def test_what_a_round_does_not_end_the_next_one_goes_on_with(service, place, monkeypatch):
    for _ in range(3):
        done(service)
    monkeypatch.setattr(retention, "_AT_ONCE", 1)
    monkeypatch.setattr(retention, "_TURN_S", 1e-9)
    asked = settings(service, keep_jobs_days=30)
    turns = 1
    while retention.apply_due(place, asked):
        turns += 1
    assert rows(service, Job) == 0
    assert turns > 3


def test_what_was_removed_is_logged_and_counted(service, place, caplog):
    done(service)
    caplog.set_level("INFO")
    retention.apply(place, settings(service, keep_jobs_days=30))
    assert "retention: removed 1 jobs" in caplog.text
    done(service)
    retention.apply(place, settings(service, keep_jobs_days=30))
    found = {family.name: family.samples for family in service.read(metrics.collect)}
    assert ({"kind": "jobs"}, 2) in found["onnxpress_removed_total"]
    assert [labels for labels, value in found["onnxpress_retention_timestamp_seconds"] if time.time() - value < 60]
