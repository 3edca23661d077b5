"""Jobs as clients see them: accepted once, found by their tenant only, cancelled, listed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import delete, select

from models import Dataset, Job, JobOutput, JobStatus, Model, ModelState, Unit
from services import artifacts, attempts, catalog, jobs, queue, uploads
from services.errors import ConflictError, InvalidError, NotFoundError, RejectedError

from .conftest import DATA, TENANT


def cancel(service, job):
    return service.write(lambda session: jobs.cancel(session, TENANT, job.id))


def output(service, job):
    return service.read(lambda session: session.get_one(Model, job.output_model_id))


def test_a_job_is_queued_with_its_output_known(service):
    job = service.submit(service.request(labels={"branch": "main"})).job
    assert job.status == JobStatus.QUEUED
    assert job.steps == [{"index": 0, "type": "simplify", "status": "waiting"}]
    assert output(service, job).state == ModelState.PENDING
    assert output(service, job).parent_id == job.model_id
    assert [name for name, _ in service.messages.sent] == ["run.cpu"]
    assert service.events(job.id) == ["queued"]


def test_the_same_key_gives_the_same_job(service):
    request = service.request()
    first = service.submit(request, idempotency_key="k")
    again = service.submit(request, idempotency_key="k")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job.id == first.job.id
    assert service.submit(request).job.id != first.job.id


def test_the_key_with_another_body_is_refused(service):
    model = service.ready_model()
    service.submit(service.request(model), idempotency_key="k")
    with pytest.raises(RejectedError) as caught:
        service.submit(service.request(model, labels={"x": "y"}), idempotency_key="k")
    assert caught.value.exact_code == "idempotency_key_reused"


def test_fifty_at_once_make_one_job(service):
    request = service.request()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: service.submit(request, idempotency_key="k").job.id, range(50)))
    assert len(set(found)) == 1
    assert service.read(lambda session: len(session.scalars(select(Job)).all())) == 1
    assert len(service.messages.sent) == 1


def test_a_refused_request_frees_its_key(service):
    model = service.upload()
    with pytest.raises(ConflictError):
        service.submit(service.request(model), idempotency_key="k")
    assert not service.submit(service.request(), idempotency_key="k").replayed


def test_names_that_do_not_exist_are_pointed_at(service):
    model = service.ready_model(tenant="other")
    request = jobs.Request(model.id, "dst_none", service.request().spec, {})
    with pytest.raises(InvalidError) as caught:
        service.submit(request)
    assert [error.pointer for error in caught.value.errors] == ["/model", "/dataset"]


def test_rejected_inputs_carry_their_problem(service):
    model = service.upload()
    claim = service.claim()
    problem = {"code": "model_invalid", "class": "user", "retryable": False, "message": "Broken."}
    service.write(lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, problem))
    with pytest.raises(RejectedError) as caught:
        service.submit(service.request(model))
    assert (caught.value.exact_code, caught.value.problem) == ("model_rejected", problem)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"passes": [{"type": "quantize_static"}]}, "spec_invalid"),
        ({"gates": [{"metric": "top1", "rule": "max_drop", "value": 0.01}]}, "spec_invalid"),
        ({"target": {"provider": "cuda"}}, "target_unavailable"),
    ],
)
def test_what_cannot_be_done_is_refused_at_submit(service, fields, code):
    with pytest.raises(RejectedError) as caught:
        service.submit(service.request(**fields))
    assert caught.value.exact_code == code
    assert [name for name, _ in service.messages.sent] == []


def test_a_queued_job_is_cancelled_at_once(service):
    job = service.submit().job
    assert cancel(service, job).status == JobStatus.CANCELLED
    assert output(service, job).state == ModelState.REJECTED
    assert service.claim() is None
    assert cancel(service, job).status == JobStatus.CANCELLED
    assert service.events(job.id) == ["queued", "cancelled"]


def test_a_running_job_is_cancelling_until_its_process_is_dead(service):
    job = service.submit().job
    claim = service.claim()
    assert cancel(service, job).status == JobStatus.CANCELLING
    assert service.read(lambda session: queue.look(session, claim.unit_id, claim.token)) == "cancel"
    assert service.write(lambda session: attempts.cancelled(session, claim.unit_id, claim.token))
    assert service.job(job.id).status == JobStatus.CANCELLED
    assert service.job(job.id).problem["code"] == "cancelled"


def test_what_has_ended_cannot_be_cancelled(service):
    job = service.submit().job
    assert service.finish(service.claim())
    with pytest.raises(ConflictError):
        cancel(service, job)
    assert service.job(job.id).status == JobStatus.SUCCEEDED


def test_cancel_and_claim_at_once_leave_no_orphan(service):
    for _ in range(5):
        job = service.submit().job
        unit_id = service.messages.take()
        with ThreadPoolExecutor(2) as pool:
            claimed = pool.submit(service.claim, unit_id)
            pool.submit(cancel, service, job).result()
        expected = JobStatus.CANCELLED if claimed.result() is None else JobStatus.CANCELLING
        assert service.job(job.id).status == expected


def test_a_result_has_all_its_parts(service):
    job = service.submit().job
    assert service.finish(service.claim())
    done = service.job(job.id)
    assert (done.status, done.verdict, done.progress) == (JobStatus.SUCCEEDED, "none", None)
    assert done.summary["text"] == "Nothing was gained."
    assert done.steps[0]["reason"] == "Already simple."
    assert output(service, job).state == ModelState.READY
    files = service.read(lambda session: jobs.report(session, TENANT, job.id))
    assert set(files) == {"report.json", "report.md"}
    assert all(service.store.exists(TENANT, file.sha256) for file in files.values())
    stored = service.read(lambda session: artifacts.get_artifact(session, TENANT, output(service, job).artifact_digest))
    assert [(file.path, file.size) for file in stored.files] == [("model.onnx", 5)]
    # The result is a network like any other.
    assert service.submit(service.request(output(service, job))).job.status == JobStatus.QUEUED


def test_no_report_before_the_end_or_without_a_result(service):
    job = service.submit().job
    for code in ("report_pending", "no_report"):
        with pytest.raises(ConflictError) as error:
            service.read(lambda session: jobs.report(session, TENANT, job.id))
        assert error.value.exact_code == code
        service.write(lambda session: jobs.cancel(session, TENANT, job.id))


def test_other_tenants_see_no_job(service):
    job = service.submit().job
    for verb in (jobs.get, jobs.cancel, jobs.events, jobs.report):
        with pytest.raises(NotFoundError):
            service.write(lambda session, verb=verb: verb(session, "other", job.id))
    assert service.read(lambda session: jobs.list_jobs(session, "other")) == []


def test_lists_filter_by_status_and_labels(service):
    model = service.ready_model()
    ids = {
        name: service.submit(service.request(model, labels={"branch": name, "odd 'name": "1"})).job.id
        for name in ("main", "dev")
    }
    cancel(service, service.job(ids["dev"]))

    def listed(**fields):
        return [job.id for job in service.read(lambda session: jobs.list_jobs(session, TENANT, **fields))]

    assert listed() == sorted(ids.values(), reverse=True)
    assert listed(status=JobStatus.QUEUED) == [ids["main"]]
    assert listed(labels={"branch": "dev"}) == [ids["dev"]]
    assert listed(labels={"branch": "dev", "odd 'name": "2"}) == []
    assert listed(limit=1, before=max(ids.values())) == [min(ids.values())]


def test_every_change_gives_a_new_version(service):
    job = service.submit().job
    versions = [service.job(job.id).version]
    claim = service.claim()
    versions.append(service.job(job.id).version)
    service.write(lambda session: queue.progress(session, claim.unit_id, claim.token, [{"type": "started"}]))
    versions.append(service.job(job.id).version)
    assert service.finish(claim)
    versions.append(service.job(job.id).version)
    assert versions == sorted(set(versions))
    assert service.read(lambda session: session.scalars(select(Unit.token)).all()) == [None, None]


OUTPUTS = {"logits": {"kind": "classes", "weight": 2.0}}


def test_a_second_dataset_to_judge_on_is_named_checked_and_placed(service):
    model, dataset = service.ready_model(), service.ready_dataset()
    judge = service.ready_dataset(declaration={"metric": "top5", "outputs": OUTPUTS})
    request = replace(service.request(model, dataset), judge_id=judge.id)
    job = service.submit(request).job
    assert job.judge_id == judge.id
    claim = service.claim()
    assert {item.path for item in claim.inputs} == {"model/model.onnx", "data/data.npz", "judge/data.npz"}
    # What the inspection found to be usable of it: its metric is the one in force.
    assert claim.declarations == {"data": {"metric": "top1"}, "judge": {"metric": "top1", "outputs": OUTPUTS}}
    with pytest.raises(ConflictError, match=r"needs the dataset"):
        service.write(lambda session: catalog.delete_dataset(session, service.store, TENANT, judge.id))


def test_a_judge_that_does_not_exist_or_fit_is_refused(service):
    model, request = service.ready_model(), service.request()
    other = service.upload(uploads.register_dataset, tenant="other")
    for judge_id in ("dst_0", other.id):
        with pytest.raises(InvalidError) as refused:
            service.submit(replace(request, judge_id=judge_id))
        assert [error.pointer for error in refused.value.errors] == ["/judge"]
    checking = service.upload(uploads.register_dataset)
    with pytest.raises(ConflictError, match=r"The judge is checking"):
        service.submit(replace(request, judge_id=checking.id))
    misfit = service.ready_dataset()
    service.write(lambda session: setattr(session.get_one(Dataset, misfit.id), "inspection", _other_arrays()))
    with pytest.raises(RejectedError, match=r"named as the network's inputs"):
        service.submit(replace(service.request(model), judge_id=misfit.id))


def test_work_judged_on_other_data_is_other_work(service):
    model, dataset, judge = service.ready_model(), service.ready_dataset(), service.ready_dataset()
    plain = service.request(model, dataset)
    keys = [service.submit(replace(plain, judge_id=judge_id)).job.cache_key for judge_id in (None, judge.id, None)]
    assert keys[0] == keys[2] != keys[1]
    service.write(lambda session: setattr(session.get_one(Dataset, judge.id), "declaration", {"outputs": OUTPUTS}))
    assert service.submit(replace(plain, judge_id=judge.id)).job.cache_key not in keys


def _other_arrays():
    found = DATA.model_dump(mode="json")
    return {**found, "arrays": [{**found["arrays"][0], "name": "other"}]}


def test_a_job_that_the_version_before_accepted_has_its_output(service):
    job = service.submit().job
    with service.database.transaction() as session:
        session.execute(delete(JobOutput).where(JobOutput.job_id == job.id))
    assert service.finish(service.claim())
    done = service.job(job.id)
    assert (done.status, done.named_outputs) == ("succeeded", {"model": job.output_model_id})
    assert output(service, job).state == ModelState.READY
