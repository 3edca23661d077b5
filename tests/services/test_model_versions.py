"""The bytes under a name have a number, which names them for ever."""

import pytest
from sqlalchemy import delete

from models import ModelVersion
from services import artifacts, catalog, model_versions
from services.errors import NotFoundError

TENANT = "default"


def named(service, name, tenant=TENANT):
    return service.read(lambda session: artifacts.get_model(session, tenant, name).id)


def version(service, model):
    return service.read(lambda session: artifacts.get_model(session, TENANT, model.id).version)


def change(service, model, **changes):
    service.write(lambda session: catalog.update_model(session, TENANT, model.id, catalog.Changes(**changes)))


def delete_model(service, model):
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))


def test_other_bytes_are_the_next_version_and_the_same_ones_are_the_same(service):
    first, second, again = (service.ready_model(content=content) for content in (b"a", b"b", b"a"))
    assert [version(service, model) for model in (first, second, again)] == [1, 2, 1]
    # Of several with these bytes the newest is meant, for its tags and lineage are the last that were said.
    assert (named(service, "net@1"), named(service, "net@2")) == (again.id, second.id)
    rows = service.read(lambda session: artifacts.list_models(session, TENANT, name="net", version=1))
    assert [row.id for row in rows] == [again.id, first.id]
    assert version(service, service.upload(content=b"c")) is None


def test_a_number_is_never_another_networks(service):
    first, second = service.ready_model(content=b"a"), service.ready_model(content=b"b")
    delete_model(service, second)
    with pytest.raises(NotFoundError, match="Version 2 of the model net has been deleted"):
        named(service, "net@2")
    change(service, first, name="other")
    assert version(service, first) == 1
    # Renamed or not, `net@1` is the same bytes.
    assert named(service, "net@1") == named(service, "other@1") == first.id
    assert version(service, service.ready_model(content=b"c")) == 3
    assert version(service, service.ready_model(content=b"b")) == 2
    with pytest.raises(NotFoundError, match="no version 4; the newest is 3"):
        named(service, "net@4")
    with pytest.raises(NotFoundError, match="No model has the name nothing"):
        named(service, "nothing@1")


def test_names_may_hold_any_sign_and_tenants_are_apart(service):
    model = service.ready_model()
    change(service, model, name="a/b @2")
    assert named(service, "a/b @2@1") == model.id
    with pytest.raises(NotFoundError):
        named(service, "a/b @2@1", "other")
    theirs = service.upload(tenant="other", content=b"x")
    with service.database.transaction() as session:
        artifacts.accept(session, artifacts.get_model(session, "other", theirs.id), {})
    assert named(service, "net@1", "other") == theirs.id


def test_results_are_versions_too(service):
    job = service.submit().job
    assert service.finish(service.claim())
    assert named(service, "net (compress)@1") == service.job(job.id).output_model_id


def test_what_processes_of_the_version_before_made_is_numbered_later(service):
    models = [service.ready_model(content=content) for content in (b"a", b"b", b"a")]
    service.write(lambda session: session.execute(delete(ModelVersion)))
    assert model_versions.number_the_rest(service.database) == 3
    assert [version(service, model) for model in models] == [1, 2, 1]
    assert model_versions.number_the_rest(service.database) == 0
