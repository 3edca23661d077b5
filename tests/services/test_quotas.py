"""A tenant's quota holds for what comes out of its units too: unpacked archives, networks and reports of jobs."""

import json

import pytest
from sqlalchemy import inspect

import engine
from models import DELIVERY_BYTES, EVENT_BYTES, ROW_BYTES, ArtifactFile, Blob, Job, Model, ModelState, Unit
from services import analyses, artifacts, attempts, catalog, jobs, quotas, unit_kinds, variant_library
from services.claims import Answer, Result
from services.errors import AnswerInvalidError, QuotaError
from services.server_secret import ServerSecret
from services.transitions import record
from services.webhooks import Policy, deliveries, subscriptions
from settings import Settings

from .conftest import INSPECTION, TENANT

ARCHIVE = b"PK\x03\x04" + b"small"


def under(service, quota):
    return Settings(data_dir=service.settings.data_dir, quota_bytes=quota)


def finished(service, content):
    writer = service.store.writer(TENANT, limit=1 << 20)
    writer.write(content)
    writer.finish()
    return writer


def leave(service, claim, files, settings, *, leaves="network"):
    """Commit what a unit's process has left, as a worker does."""
    writers = {name: finished(service, content) for name, content in files.items()}
    named = {name: artifacts.NewFile(name, writer) for name, writer in writers.items()}
    try:
        result = Result(Answer(INSPECTION, leaves), tuple(named.values()))
        return service.write(
            lambda session: attempts.finish(
                session, service.store, claim.unit_id, claim.token, result, settings=settings
            )
        )
    finally:
        for writer in writers.values():
            writer.abort()


def stored_bytes(service):
    return service.read(lambda session: quotas.stored_bytes(session, TENANT))


def test_an_archive_that_unpacks_beyond_the_quota_is_rejected_and_leaves_nothing(service):
    model = service.upload(content=ARCHIVE)
    assert leave(service, service.claim(), {"model.onnx": b"x" * 9_000}, under(service, 5_000), leaves="unpacked")
    found = service.read(lambda session: artifacts.get_model(session, TENANT, model.id))
    assert (found.state, found.problem["code"], found.problem["class"]) == (ModelState.REJECTED, "quota_bytes", "user")
    assert service.stored() == set()


def test_what_comes_out_of_an_archive_takes_its_place(service):
    model = service.upload(content=ARCHIVE + b"y" * 4_000)
    assert leave(service, service.claim(), {"model.onnx": b"x" * 4_500}, under(service, 7_000), leaves="unpacked")
    assert service.read(lambda session: artifacts.get_model(session, TENANT, model.id)).state == ModelState.READY
    assert service.read(lambda session: [blob.size for blob in session.query(Blob)]) == [4_500]


def test_a_result_beyond_the_quota_fails_its_job_and_leaves_nothing(service):
    job = service.submit().job
    before = service.stored()
    settings = under(service, stored_bytes(service) + 1_000)
    claim = service.claim()
    assert leave(service, claim, {"model.onnx": b"x" * 1_001}, settings)
    ended = service.job(job.id)
    assert (ended.status, ended.problem["code"]) == ("failed", "quota_bytes")
    assert "over the quota" in ended.problem["message"]
    assert service.stored() == before


def test_bytes_that_are_stored_are_free(service):
    model = service.ready_model(content=b"z" * 1_000)
    [stored] = service.read(lambda session: session.query(ArtifactFile.sha256, ArtifactFile.size).all())
    files = [artifacts.Stored(*stored)] * 2
    settings = under(service, stored_bytes(service))
    service.read(lambda session: quotas.check_files(session, TENANT, files, settings))
    new = artifacts.Stored("0" * 64, 1)
    with pytest.raises(QuotaError):
        service.read(lambda session: quotas.check_files(session, TENANT, [*files, new], settings))
    assert model.state == ModelState.READY


def test_who_has_used_up_the_quota_starts_nothing(service):
    request = service.request()
    full = under(service, stored_bytes(service))
    with pytest.raises(QuotaError) as refused:
        service.submit(request, settings=full)
    assert refused.value.exact_code == "quota_bytes"
    with pytest.raises(QuotaError):
        service.read(lambda session: quotas.room(session, TENANT, full)).check(1)
    assert service.read(lambda session: quotas.room(session, TENANT, under(service, 0))) is None


def test_rows_count_too(service):
    """The same bytes again and again cost nothing, but what is kept of each upload does."""
    before = stored_bytes(service)
    model = service.ready_model(content=b"same")
    row = stored_bytes(service) - before - len(b"same")
    assert row > ROW_BYTES + len(INSPECTION.model_dump_json())
    service.ready_model(content=b"same")
    assert stored_bytes(service) == before + len(b"same") + 2 * row
    job = service.submit(service.request(model, labels={"why": "w" * 200})).job
    assert stored_bytes(service) > before + 2 * row + 2 * ROW_BYTES + len(json.dumps(job.spec)) + 200
    other = service.ready_model(content=b"other")
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, other.id))
    kept = service.read(lambda session: session.get_one(Model, other.id))
    assert kept.inspection == {"size_bytes": INSPECTION.size_bytes}
    # With the three events of its life.
    assert kept.row_bytes < ROW_BYTES + 100 + 3 * (EVENT_BYTES + 10)


def test_what_belongs_to_a_row_counts_with_it(service):
    """Events and units, which grow beside the row, and keep counting when its own texts change."""
    job = service.submit().job
    before = stored_bytes(service)
    told = {"message": "m" * 1_000}
    service.write(lambda session: record(session, session.get_one(Job, job.id), "warning", told))
    assert stored_bytes(service) >= before + EVENT_BYTES + 1_000

    def change(session, steps):
        session.get_one(Job, job.id).steps = steps

    service.write(lambda session: change(session, []))
    before = stored_bytes(service)
    service.write(lambda session: change(session, ["s" * 5_000]))
    assert stored_bytes(service) == before + 5_002
    service.write(lambda session: change(session, []))
    assert stored_bytes(service) == before
    row = service.read(lambda session: session.get_one(Job, job.id))
    texts = sum(len(json.dumps(each)) for each in (row.spec, row.labels, row.steps, row.warnings))
    units = service.read(lambda session: session.query(Unit).filter_by(job_id=job.id).count())
    assert row.row_bytes > texts + (1 + units) * ROW_BYTES + EVENT_BYTES + 1_000


def test_what_was_found_out_counts_with_whose_it_is(service):
    """What of a network could be pruned, and the pieces of the library that its searches have measured."""
    model = service.ready_model()
    job = service.submit(service.request(model)).job
    asked = service.write(lambda session: analyses.start(session, TENANT, model.id, service.settings))
    found = engine.Prunability(
        prunable_parameters=0.5, prunable_macs=0.5, parameters=10, macs=10,
        kinds={}, groups=(), groups_total=0, frozen=(), frozen_total=0,
    )  # fmt: skip
    claim, result = service.claim(asked.unit_id), Result(Answer(found))
    before = stored_bytes(service)
    assert service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, claim.token, result))
    assert stored_bytes(service) == before + len(json.dumps(found.model_dump(mode="json")))
    before, piece = stored_bytes(service), {"figures": "f" * 5_000}
    for _ in range(2):
        service.write(
            lambda session: variant_library.keep(session, session.get_one(Job, job.id), "library", "part", piece)
        )
    assert stored_bytes(service) == before + ROW_BYTES + len(json.dumps(piece))


def test_what_is_sent_to_webhooks_counts_until_they_go(service):
    policy = Policy.from_settings(Settings(webhook_networks="127.0.0.0/8"))
    before = stored_bytes(service)
    made = service.write(
        lambda session: subscriptions.create(
            session, TENANT, "http://127.0.0.1:9/hook", secret=ServerSecret("s" * 64), policy=policy
        )
    )
    for _ in range(3):
        service.write(lambda session: deliveries.ping(session, subscriptions.get(session, TENANT, made.row.id)))
    assert stored_bytes(service) == before + 3 * DELIVERY_BYTES
    service.write(lambda session: subscriptions.delete(session, TENANT, made.row.id))
    assert stored_bytes(service) == before


def test_lists_read_none_of_what_is_long(service):
    model, dataset = service.ready_model(), service.ready_dataset()
    service.submit(service.request(model, dataset))
    lists = {
        artifacts.list_models: {"inspection"},
        artifacts.list_datasets: {"inspection"},
        jobs.list_jobs: {"spec", "steps", "warnings"},
    }
    for listed, long in lists.items():
        row = service.read(lambda session, listed=listed: listed(session, TENANT)[0])
        assert long <= inspect(row).unloaded
    lineage = service.read(lambda session: catalog.lineage(session, TENANT, model.id))
    assert all("inspection" in inspect(row).unloaded for row in lineage.descendants)
    above = service.read(lambda session: catalog.lineage(session, TENANT, lineage.descendants[0].id)).ancestors
    assert [(row.id, "inspection" in inspect(row).unloaded) for row in above] == [(model.id, True)]


def test_a_process_that_was_taken_over_fills_no_row(service):
    service.upload()
    claim = service.claim()
    names = [{"name": f"{number} {'n' * 900}", "dtype": "float32", "shape": []} for number in range(400)]
    with pytest.raises(AnswerInvalidError, match="are the limit"):
        unit_kinds.read_answer(claim, {**INSPECTION.model_dump(mode="json"), "inputs": names})
