"""Names, aliases, lineage; and what goes when something is deleted."""

import pytest

from models import Artifact, Blob
from services import artifacts, catalog, jobs, uploads
from services.catalog import Changes
from services.errors import ConflictError, InvalidError, NotFoundError

TENANT = "default"


def get(service, model):
    return service.read(lambda session: artifacts.get_model(session, TENANT, model.id))


def change(service, model, **changes):
    return service.write(lambda session: catalog.update_model(session, TENANT, model.id, Changes(**changes)))


def delete(service, model):
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))


def test_names_and_tags_change_alone(service):
    model = service.ready_model()
    before = model.updated_at
    change(service, model, name="better")
    change(service, model, tags=["a", "b", "a"])
    found = get(service, model)
    assert (found.name, found.tags, found.alias) == ("better", ["a", "b"], None)
    assert found.updated_at > before


def test_lists_are_narrowed_by_tags(service):
    first, second = service.ready_model(), service.ready_model()
    for model, tags in ((first, ["a", "b"]), (second, ["a", 'b"'])):
        changes = catalog.Changes(tags=tags)
        service.write(
            lambda session, model=model, changes=changes: catalog.update_model(session, TENANT, model.id, changes)
        )

    def found(*tags):
        rows = service.read(lambda session: artifacts.list_models(session, TENANT, tags=tags))
        return [row.id for row in rows]

    assert found() == found("a") == [second.id, first.id]
    assert found("a", "b") == [first.id]
    assert found('b"') == [second.id]
    assert found("A") == []


def test_an_alias_moves_to_the_last_who_asks(service):
    first, second = service.ready_model(), service.ready_model()
    change(service, first, alias="production")
    change(service, second, alias="production")
    assert (get(service, first).alias, get(service, second).alias) == (None, "production")
    found = service.read(lambda session: artifacts.list_models(session, TENANT, alias="production"))
    assert [one.id for one in found] == [second.id]
    change(service, second, name="kept")
    assert get(service, second).alias == "production"
    change(service, second, alias="")
    assert get(service, second).alias is None


def test_a_deleted_model_is_gone_with_its_bytes(service):
    model = service.ready_model()
    assert service.stored()
    change(service, model, alias="production")
    delete(service, model)
    with pytest.raises(NotFoundError):
        get(service, model)
    with pytest.raises(NotFoundError):
        delete(service, model)
    assert service.read(lambda session: artifacts.list_models(session, TENANT)) == []
    assert service.stored() == set()
    assert service.read(lambda session: session.query(Artifact).count() + session.query(Blob).count()) == 0
    # The alias is free again, and so are the bytes.
    change(service, service.ready_model(), alias="production")


def test_bytes_stay_as_long_as_anything_names_them(service):
    first, second = service.ready_model(content=b"same"), service.ready_model(content=b"same")
    delete(service, first)
    assert len(service.stored()) == 1
    assert service.store.exists(TENANT, artifacts_sha(service, second))
    delete(service, second)
    assert service.stored() == set()


def artifacts_sha(service, model):
    return service.read(lambda session: artifacts.get_model(session, TENANT, model.id).artifact.files[0].sha256)


def test_what_a_job_needs_stays(service):
    model, dataset = service.ready_model(), service.ready_dataset()
    job = service.submit(service.request(model, dataset)).job
    with pytest.raises(ConflictError) as refused:
        delete(service, model)
    assert refused.value.exact_code == "model_in_use"
    with pytest.raises(ConflictError) as refused:
        service.write(lambda session: catalog.delete_dataset(session, service.store, TENANT, dataset.id))
    assert refused.value.exact_code == "dataset_in_use"
    output = service.read(lambda session: artifacts.get_model(session, TENANT, job.output_model_id))
    with pytest.raises(ConflictError):
        delete(service, output)
    assert service.finish(service.claim())
    delete(service, model)
    service.write(lambda session: catalog.delete_dataset(session, service.store, TENANT, dataset.id))
    # The job still tells what it was about, and its result is there.
    assert service.job(job.id).model_id == model.id
    assert get(service, output).state == "ready"


def test_an_upload_that_is_checked_stays(service):
    fresh = service.upload()
    with pytest.raises(ConflictError, match="checking"):
        delete(service, fresh)


def test_lineage_goes_up_and_down(service):
    root = service.ready_model()
    jobs_made = []
    model = root
    for _ in range(2):
        job = service.submit(service.request(model)).job
        assert service.finish(service.claim())
        model = service.read(lambda session, job=job: artifacts.get_model(session, TENANT, job.output_model_id))
        jobs_made.append(job)
    sibling = service.submit(service.request(root)).job
    middle, leaf = (job.output_model_id for job in jobs_made)

    def lineage(model_id):
        found = service.read(lambda session: catalog.lineage(session, TENANT, model_id))
        return [one.id for one in found.ancestors], {one.id for one in found.descendants}, found.complete

    assert lineage(root.id) == ([], {middle, leaf, sibling.output_model_id}, True)
    assert lineage(leaf) == ([middle, root.id], set(), True)
    delete(service, service.read(lambda session: artifacts.get_model(session, TENANT, middle)))
    ancestors = service.read(lambda session: catalog.lineage(session, TENANT, leaf)).ancestors
    assert [(one.id, one.state) for one in ancestors] == [(middle, "deleted"), (root.id, "ready")]


def test_known_bytes_become_a_model_without_an_upload(service):
    model = service.ready_model(content=b"known bytes")
    sha256 = artifacts_sha(service, model)

    def again(session, tenant=TENANT):
        known = artifacts.known_blob(session, service.store, tenant, sha256)
        return uploads.register_model(session, tenant, known, name="again")

    made = service.write(again)
    assert made.artifact_digest == get(service, model).artifact_digest
    with pytest.raises(InvalidError) as refused:
        service.write(lambda session: again(session, "other"))
    assert refused.value.exact_code == "unknown_blob"
    # What went between the question and the request is told in the same way.
    known = service.read(lambda session: artifacts.known_blob(session, service.store, TENANT, sha256))
    delete(service, model)
    service.write(lambda session: jobs.list_jobs(session, TENANT))
    assert known.finish().sha256 == sha256
