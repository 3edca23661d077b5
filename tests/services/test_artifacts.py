"""Uploads become networks and datasets; what is rejected leaves nothing; tenants see their own only."""

import pytest

import engine
from models import DatasetState, ModelState, UnitStatus
from services import artifacts, attempts, uploads
from services.claims import Answer, Result
from services.errors import NotFoundError

from .conftest import DATA, INSPECTION, TENANT

PROBLEM = {"code": "model_invalid", "class": "user", "retryable": False, "message": "Not a network."}


def reject(service):
    claim = service.claim()
    return service.write(lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, PROBLEM))


def finish(service, claim, inspection):
    result = Result(Answer(inspection))
    return service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, claim.token, result))


def model_of(service, row):
    return service.read(lambda session: artifacts.get_model(session, TENANT, row.id))


def test_an_upload_is_checked_then_ready(service):
    model = service.upload(content=b"bytes")
    assert model.state == ModelState.CHECKING
    claim = service.claim()
    assert claim.kind == "inspect_model"
    assert [(item.path, item.size) for item in claim.inputs] == [("model/model.onnx", 5)]
    found = INSPECTION.model_dump(mode="json")
    assert finish(service, claim, INSPECTION)
    ready = model_of(service, model)
    assert ready.state == ModelState.READY
    assert ready.inspection == found


def test_a_dataset_keeps_its_declared_metric(service):
    service.upload(uploads.register_dataset, declaration={"metric": "mse"})
    claim = service.claim()
    assert claim.declarations == {"data": {"metric": "mse"}}
    assert [item.path for item in claim.inputs] == ["data/data.npz"]


def test_data_that_do_not_fit_their_network_are_rejected(service):
    model = service.ready_model()
    dataset = service.upload(uploads.register_dataset, fits=model.id)
    claim = service.claim()
    other = {**DATA.model_dump(mode="json"), "arrays": [{"name": "sound", "dtype": "uint8", "shape": [40, 3]}]}
    assert finish(service, claim, engine.DatasetInspection.model_validate(other))
    found = service.read(lambda session: artifacts.get_dataset(session, TENANT, dataset.id))
    assert found.state == DatasetState.REJECTED
    assert found.problem["code"] == "dataset_invalid"


def test_what_is_rejected_leaves_a_reason_and_no_bytes(service):
    model = service.upload()
    assert len(service.stored()) == 1
    assert reject(service)
    found = model_of(service, model)
    assert (found.state, found.problem, found.artifact_digest) == (ModelState.REJECTED, PROBLEM, None)
    assert service.stored() == set()


def test_bytes_that_another_object_has_stay(service):
    kept = service.ready_model(content=b"same")
    service.upload(content=b"same")
    assert reject(service)
    assert len(service.stored()) == 1
    assert model_of(service, kept).artifact_digest is not None


def test_rejected_bytes_can_come_again(service):
    service.upload(content=b"same")
    assert reject(service)
    again = service.ready_model(content=b"same")
    assert again.state == ModelState.READY
    assert len(service.stored()) == 1


def test_the_same_content_is_stored_once_per_tenant(service):
    first, second = service.upload(content=b"same"), service.upload(content=b"same")
    assert first.artifact_digest == second.artifact_digest
    service.upload(content=b"same", tenant="other")
    assert len(service.stored()) == 2


def test_a_rollback_makes_nothing_visible(service):
    def fail(session):
        with service.store.writer(TENANT, limit=10) as writer:
            writer.write(b"x")
            writer.finish()
            uploads.register_model(session, TENANT, writer, name="x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        service.write(fail)
    assert service.read(lambda session: artifacts.list_models(session, TENANT)) == []
    assert service.messages.sent == []


def test_other_tenants_see_nothing(service):
    model, dataset = service.upload(), service.upload(uploads.register_dataset)
    for get, row in ((artifacts.get_model, model), (artifacts.get_dataset, dataset)):
        with pytest.raises(NotFoundError):
            service.read(lambda session, get=get, row=row: get(session, "other", row.id))
    with pytest.raises(NotFoundError):
        service.read(lambda session: artifacts.get_artifact(session, "other", model.artifact_digest))
    assert service.read(lambda session: artifacts.list_models(session, "other")) == []


def test_lists_go_back_in_time(service):
    ids = [service.upload().id for _ in range(5)]
    found = service.read(lambda session: artifacts.list_models(session, TENANT, limit=2))
    assert [row.id for row in found] == sorted(ids, reverse=True)[:2]
    more = service.read(lambda session: artifacts.list_models(session, TENANT, limit=9, before=found[-1].id))
    assert [row.id for row in more] == sorted(ids, reverse=True)[2:]


def test_an_inspection_that_crashes_each_time_rejects(service):
    model = service.upload()
    for attempt in range(1, service.settings.max_crashes + 2):
        claim = service.claim()
        assert claim.attempt == attempt
        assert service.write(
            lambda session, claim=claim: attempts.crashed(
                session, service.store, claim.unit_id, claim.token, service.settings
            )
        )
    found = model_of(service, model)
    assert (found.state, found.problem["code"]) == (ModelState.REJECTED, "process_crashed")
    assert service.stored() == set()
    assert service.claim(claim.unit_id) is None
    assert UnitStatus.FAILED == "failed"
