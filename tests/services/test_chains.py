"""Jobs that work on what other jobs make, jobs that were done before, and jobs that are tried again."""

import threading

import pytest

from models import Unit
from services import artifacts, attempts, cache, jobs, queue, quotas, workers
from services.errors import ConflictError, QuotaError, RejectedError
from settings import Settings

TENANT = "default"


def follow(service, job, **fields):
    """Ask for a job on another job's output."""
    output = service.read(lambda session: artifacts.get_model(session, TENANT, job.output_model_id))
    return service.submit(service.request(output, **fields)).job


def unit_of(service, job):
    return service.read(lambda session: session.query(Unit).filter(Unit.job_id == job.id).one())


def test_a_job_runs_after_the_one_that_makes_its_model(service):
    first = service.submit().job
    second = follow(service, first)
    third = follow(service, second)
    assert [unit_of(service, one).status for one in (first, second, third)] == ["queued", "waiting", "waiting"]
    assert second.output_model_id != first.output_model_id
    assert "still to be made" in second.warnings[0]
    assert len(service.messages.sent) == 1
    assert service.finish(service.claim())
    assert (service.job(first.id).status, unit_of(service, second).status) == ("succeeded", "queued")
    assert unit_of(service, third).status == "waiting"
    assert service.events(second.id) == ["waiting", "released"]
    released = service.job(second.id)
    assert (released.progress, released.warnings) != (second.progress, second.warnings)
    claim = service.claim()
    assert claim.inputs[0].sha256 == service.read(
        lambda session: artifacts.get_model(session, TENANT, first.output_model_id).artifact.files[0].sha256
    )
    assert service.finish(claim)
    assert service.finish(service.claim())
    assert service.job(third.id).status == "succeeded"


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_what_waits_for_a_job_that_ends_without_a_result_fails(service, end):
    first = service.submit().job
    second = follow(service, first)
    third = follow(service, second)
    if end == "cancel":
        service.write(lambda session: jobs.cancel(session, TENANT, first.id))
    else:
        claim = service.claim()
        problem = {"code": "baseline_failed", "class": "user", "retryable": False, "message": "It does not run."}
        assert service.write(lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, problem))
    for job in (second, third):
        ended = service.job(job.id)
        assert (ended.status, ended.problem["code"]) == ("failed", "dependency_failed")
        assert unit_of(service, job).status == "failed"
    output = service.read(lambda session: artifacts.get_model(session, TENANT, third.output_model_id))
    assert (output.state, output.problem["code"]) == ("rejected", "dependency_failed")
    with pytest.raises(RejectedError):
        follow(service, first)


def test_a_waiting_job_is_cancelled_alone(service):
    first = service.submit().job
    second = follow(service, first)
    assert service.write(lambda session: jobs.cancel(session, TENANT, second.id)).status == "cancelled"
    assert service.finish(service.claim())
    assert service.job(second.id).status == "cancelled"


def test_what_does_not_fit_the_model_that_came_fails_then(service):
    first = service.submit().job
    second = follow(service, first, target={"shapes": {"sound": [1, 3]}})
    assert service.finish(service.claim())
    ended = service.job(second.id)
    assert (ended.status, ended.problem["code"]) == ("failed", "spec_invalid")
    assert "`sound`" in ended.problem["message"]
    assert service.messages.sent == []


def test_what_can_be_told_without_the_model_is_told_at_once(service):
    first = service.submit().job
    with pytest.raises(RejectedError, match="needs calibration data"):
        follow(service, first, passes=[{"type": "quantize_static"}])


# The cache


def beat(service, onnxruntime="1.32"):
    """Have a live worker like the one that the reports of these tests come from."""
    target = {"provider": "cpu", "cpu": "x", "flags": [], "onnxruntime": onnxruntime, "device": "cpu"}
    service.write(
        lambda session: workers.heartbeat(
            session,
            "wrk_1",
            host="h",
            pid=1,
            queues=["run.cpu"],
            concurrency=1,
            targets=[target],
            isolation="none",
        )
    )


@pytest.fixture
def done(service):
    beat(service)
    request = service.request()
    job = service.submit(request).job
    assert service.finish(service.claim())
    return request, service.job(job.id)


def test_the_same_work_is_answered_by_the_earlier_result(service, done):
    request, job = done
    again = service.submit(request).job
    assert (again.status, again.cache, again.cached_from) == ("succeeded", "hit", job.id)
    assert again.id != job.id
    assert again.output_model_id != job.output_model_id
    assert (again.report_digest, again.steps, again.summary) == (job.report_digest, job.steps, job.summary)
    models = service.read(
        lambda session: [artifacts.get_model(session, TENANT, one.output_model_id) for one in (job, again)]
    )
    assert models[0].artifact_digest == models[1].artifact_digest
    assert service.messages.sent == []
    assert service.events(again.id) == ["queued", "succeeded"]
    # Limits and labels change no result.
    other = jobs.Request(
        request.model_id,
        None,
        request.spec.model_copy(update={"limits": request.spec.limits.model_copy(update={"max_runtime_s": 99})}),
        {"other": "label"},
    )
    assert service.submit(other).job.cached_from == again.id


def test_the_cache_can_be_refused(service, done):
    request, _ = done
    fresh = service.submit(jobs.Request(request.model_id, None, request.spec, {}, cache="refuse")).job
    assert (fresh.status, fresh.cache, fresh.cached_from) == ("queued", "refused", None)


def test_other_work_and_other_machines_are_a_miss(service, done):
    request, _ = done
    gated = service.request(
        service.read(lambda session: artifacts.get_model(session, TENANT, request.model_id)),
        gates=[{"metric": "size_bytes", "rule": "max_ratio", "value": 0.5}],
    )
    assert service.submit(gated).job.cache == "miss"
    beat(service, onnxruntime="1.33")
    assert service.submit(request).job.cache == "miss"
    beat(service)
    assert service.submit(request).job.cache == "hit"


def test_a_tenants_results_answer_nobody_else(service, done):
    request, job = done
    found = service.read(lambda session: cache.find(session, "other", job.cache_key, request.spec))
    assert found is None
    assert service.read(lambda session: cache.find(session, TENANT, job.cache_key, request.spec)) is not None


# Again


def test_a_failed_job_is_tried_again_as_a_new_one(service):
    job = service.submit(service.request(labels={"a": "b"})).job
    with pytest.raises(ConflictError) as early:
        service.write(lambda session: jobs.retry(session, TENANT, job.id))
    assert early.value.exact_code == "not_failed"
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    made = {
        service.write(lambda session: jobs.retry(session, TENANT, job.id, idempotency_key="k")).job.id for _ in range(2)
    }
    assert len(made) == 1
    again = service.job(made.pop())
    assert (again.retry_of, again.labels, again.status) == (job.id, {"a": "b"}, "queued")
    assert service.write(lambda session: jobs.retry(session, TENANT, job.id)).job.id != again.id


def test_no_more_jobs_than_the_quota(service):
    settings = Settings(data_dir=service.settings.data_dir, quota_jobs=2)
    jobs_made = [service.submit(settings=settings).job for _ in range(2)]
    with pytest.raises(QuotaError) as refused:
        service.submit(settings=settings)
    assert (refused.value.exact_code, refused.value.retry_after_s) == ("quota_jobs", 30)
    service.write(lambda session: jobs.cancel(session, TENANT, jobs_made[0].id))
    assert service.submit(settings=settings).job.status == "queued"


def test_no_more_bytes_than_the_quota(service):
    service.upload(content=b"12345")
    stored = service.read(lambda session: quotas.stored_bytes(session, TENANT))
    settings = Settings(data_dir=service.settings.data_dir, quota_bytes=stored + 3)
    service.read(lambda session: quotas.check_bytes(session, TENANT, 3, settings))
    service.read(lambda session: quotas.check_bytes(session, "other", 8, settings))
    with pytest.raises(QuotaError) as refused:
        service.read(lambda session: quotas.check_bytes(session, TENANT, 4, settings))
    assert refused.value.exact_code == "quota_bytes"


# Whose turn it is


def next_tenant(service, message):
    claim = service.write(
        lambda session: queue.claim_next(session, message, worker_id="wrk_1", lease_s=30, queues=["run.cpu"])
    )
    return claim and (claim.tenant_id, claim.job_id)


def test_tenants_take_turns_and_priorities_count_within_one(service):
    theirs = service.ready_model(tenant="other")
    request = service.request()
    mine = [service.submit(request).job.id for _ in range(3)]
    urgent = service.submit(jobs.Request(request.model_id, None, request.spec, {}, priority=5)).job.id
    foreign = [
        service.write(
            lambda session: jobs.submit(session, "other", jobs.Request(theirs.id, None, request.spec, {}))
        ).job.id
        for _ in range(2)
    ]
    message = service.messages.sent[0][1]
    order = [next_tenant(service, message) for _ in range(7)]
    assert order[-1] is None
    assert [tenant for tenant, _ in order[:4]] in (["default", "other"] * 2, ["other", "default"] * 2)
    assert [job for tenant, job in order[:6] if tenant == "default"] == [urgent, *mine]
    assert [job for tenant, job in order[:6] if tenant == "other"] == foreign
    assert next_tenant(service, "unt_unknown") is None


def test_two_workers_never_take_the_same_unit(service):
    request = service.request()
    for _ in range(8):
        service.submit(request)
    message = service.messages.sent[0][1]
    taken = []

    def work():
        while (found := next_tenant(service, message)) is not None:
            taken.append(found[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == 8
