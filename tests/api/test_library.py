"""Uploads in other forms, and what is kept of them: names, aliases, deletion, known bytes."""

import hashlib
import json
import os

import pytest

from models import Dataset

RAW = {"Content-Type": "application/octet-stream"}


def form(name="file", filename="net.onnx", content=b"in a form"):
    return {name: (filename, content, "application/octet-stream")}


@pytest.mark.parametrize("size", [1, 70_000, (3 << 20) + 5])
def test_a_form_is_as_good_as_raw_bytes(service, client, size):
    content = os.urandom(size)
    answer = client.post("/v1/models", files=form(content=content))
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["name"], model["sha256"]) == ("net", hashlib.sha256(content).hexdigest())
    named = client.post("/v1/models", files=form(content=content), params={"name": "given"}).json()
    assert (named["name"], named["sha256"]) == ("given", model["sha256"])
    assert client.get(f"/v1/models/{model['id']}/content").content == content


@pytest.mark.parametrize(
    ("files", "status"),
    [
        (form("model"), 422),
        (form() | form("more"), 422),
        (form(content=b""), 400),
    ],
)
def test_other_forms_are_refused(service, client, files, status):
    before = service.stored_files()
    answer = client.post("/v1/models", files=files)
    assert answer.status_code == status
    assert service.stored_files() == before


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=" + "x" * 100, b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\n"),
    ],
)
def test_broken_forms_are_refused(service, client, kind, body):
    before = service.stored_files()
    answer = client.post("/v1/models", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert service.stored_files() == before


def test_a_form_over_the_limit(service, client):
    answer = client.post("/v1/models", files=form(content=bytes((8 << 20) + 1)))
    assert answer.status_code == 413


def test_known_bytes_are_not_sent_again(service, client, stranger):
    content = os.urandom(100)
    sha256 = hashlib.sha256(content).hexdigest()
    assert client.head(f"/v1/blobs/{sha256}").status_code == 404
    unknown = client.post("/v1/models", json={"blob": sha256})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_blob")
    client.post("/v1/models", content=content, headers=RAW)
    there = client.head(f"/v1/blobs/{sha256}")
    assert (there.status_code, there.headers["Content-Length"], there.content) == (200, "100", b"")
    again = client.post("/v1/models", json={"blob": sha256}, params={"name": "again"})
    assert again.status_code == 201
    assert (again.json()["sha256"], again.json()["name"], again.json()["state"]) == (sha256, "again", "checking")
    # The same request in either form is the same for an Idempotency-Key.
    keyed = {"Idempotency-Key": "either"}
    first = client.post("/v1/datasets", content=content, headers=RAW | keyed).json()
    assert client.post("/v1/datasets", json={"blob": sha256}, headers=keyed).json()["id"] == first["id"]
    assert stranger.head(f"/v1/blobs/{sha256}").status_code == 404
    assert stranger.post("/v1/models", json={"blob": sha256}).status_code == 422
    for body in ({}, {"blob": "x"}, {"blob": sha256, "more": 1}, []):
        assert client.post("/v1/models", json=body).status_code == 422


def test_names_tags_and_aliases(service, client):
    first, second = service.ready_model(client, b"one"), service.ready_model(client, b"two")
    before = client.get(f"/v1/models/{first}")
    assert client.get(f"/v1/models/{first}", headers={"If-None-Match": before.headers["ETag"]}).status_code == 304
    changed = client.patch(f"/v1/models/{first}", json={"name": "better", "tags": ["a"], "alias": "production"})
    assert (changed.status_code, changed.json()["name"], changed.json()["alias"]) == (200, "better", "production")
    after = client.get(f"/v1/models/{first}", headers={"If-None-Match": before.headers["ETag"]})
    assert (after.status_code, after.json()["tags"]) == (200, ["a"])
    for part in ("card", "bom"):
        known = {"If-None-Match": client.get(f"/v1/models/{first}/{part}").headers["ETag"]}
        assert client.get(f"/v1/models/{first}/{part}", headers=known).status_code == 304
    client.patch(f"/v1/models/{second}", json={"alias": "production"})
    versions = client.get("/v1/models", params={"name": "better"}).json()["items"]
    assert [one["id"] for one in versions] == [first]
    assert client.get("/v1/models", params={"name": "bett"}).json()["items"] == []
    found = client.get("/v1/models", params={"alias": "production"}).json()["items"]
    assert [one["id"] for one in found] == [second]
    # What it is stands with itself: of two hundred it is megabytes.
    assert set(client.get(f"/v1/models/{second}").json()) - set(found[0]) == {"inspection"}
    assert client.patch(f"/v1/models/{second}", json={"alias": None}).json()["alias"] is None
    assert client.get("/v1/models", params={"alias": "production"}).json()["items"] == []
    for wrong in ({"alias": "UPPER"}, {"state": "ready"}, {"name": ""}, {"tags": ["x" * 65]}):
        assert client.patch(f"/v1/models/{first}", json=wrong).status_code == 422
    assert {one["state"] for one in client.get("/v1/models", params={"state": "ready"}).json()["items"]} == {"ready"}


def test_versions_over_http(service, client, stranger):
    first, second = (service.ready_model(client, content) for content in (b"1", b"2"))
    name = "numbered"
    for model in (first, second):
        client.patch(f"/v1/models/{model}", json={"name": name})
    assert [client.get(f"/v1/models/{name}@{number}").json()["id"] for number in (1, 2)] == [first, second]
    (found,) = client.get("/v1/models", params={"name": name, "version": 2}).json()["items"]
    assert (found["id"], found["version"]) == (second, 2)
    assert client.put("/v1/aliases/numbered", json={"model": f"{name}@1"}).json()["model"] == first
    missing = client.put("/v1/aliases/numbered", json={"model": f"{name}@3"})
    assert (missing.status_code, missing.json()["detail"]) == (
        404,
        "The model numbered has no version 3; the newest is 2.",
    )
    assert stranger.get(f"/v1/models/{name}@1").status_code == 404
    assert client.put("/v1/aliases/numbered", json={"model": f"{name}@0"}).status_code == 422
    assert client.delete("/v1/aliases/numbered").status_code == 204


def test_aliases_over_http(service, client, stranger):
    first, second = service.ready_model(client, b"one"), service.ready_model(client, b"two")
    moved = client.put("/v1/aliases/prod", json={"model": first, "expected": None, "note": "first release"})
    assert (moved.status_code, moved.json()["model"]) == (200, first)
    assert client.put("/v1/aliases/prod", json={"model": second}).json()["history"][1]["note"] == "first release"
    for path in ("", "/lineage", "/content"):
        assert client.get(f"/v1/models/@prod{path}").content == client.get(f"/v1/models/{second}{path}").content
    assert client.get("/v1/models/@prod").json()["aliases"] == ["prod"]
    late = client.put("/v1/aliases/prod", json={"model": second, "expected": first})
    assert (late.status_code, late.json()["code"]) == (409, "alias_moved")
    plan = client.post("/v1/jobs:validate", json={"model": "@prod", "recipe": {"passes": [{"type": "simplify"}]}})
    assert plan.json()["valid"], plan.json()
    back = client.post("/v1/aliases/prod:rollback", json={"note": "p99 rose"}).json()
    assert (back["model"], back["history"][0]["rollback"], back["history"][0]["note"]) == (first, True, "p99 rose")
    assert client.get("/v1/aliases").json()["items"] == [{name: back[name] for name in ("name", "model", "moved_at")}]
    assert stranger.get("/v1/models/@prod").status_code == stranger.get("/v1/aliases/prod").status_code == 404
    assert client.put("/v1/aliases/UPPER", json={"model": first}).status_code == 422
    assert client.put("/v1/aliases/prod", json={"model": "@none"}).status_code == 404
    assert client.delete("/v1/aliases/prod").status_code == 204
    gone = client.get("/v1/models/@prod")
    assert (gone.status_code, gone.json()["detail"]) == (404, "No model has the alias prod.")


def test_models_and_datasets_are_found_by_their_tags(service, client, stranger):
    models = [service.ready_model(client, f"tagged {number}".encode()) for number in range(3)]
    for model, tags in zip(models, (["tag", 'q"'], ["tag", "b"], ["tags"]), strict=True):
        client.patch(f"/v1/models/{model}", json={"tags": tags})
    dataset = service.ready_dataset(client, b"tagged data")
    client.patch(f"/v1/datasets/{dataset}", json={"tags": ["b"]})

    def found(path, *tags, who=client):
        return [one["id"] for one in who.get(path, params={"tag": tags, "limit": 200}).json()["items"]]

    assert found("/v1/models", "tag") == models[1::-1]
    assert found("/v1/models", "tag", "b") == [models[1]]
    assert found("/v1/models", 'q"') == [models[0]]
    assert found("/v1/models", "none") == found("/v1/models", "tag", who=stranger) == []
    assert found("/v1/datasets", "b") == [dataset]
    assert client.get("/v1/models", params={"tag": "tag", "limit": 1}).json()["next_cursor"]
    assert client.get("/v1/models", params={"tag": ""}).status_code == 422


def test_an_archive_that_was_unpacked_is_not_sent_again(service, client, stranger):
    archive = b"PK\x03\x04" + os.urandom(100)
    sha256 = hashlib.sha256(archive).hexdigest()
    model = client.post("/v1/models", content=archive, headers=RAW).json()["id"]
    service.inspect(model, service.inspection, unpacked={"model.onnx": b"net", "net.data": b"weights"})
    assert not any(file.name == sha256 for file in service.stored_files())
    there = client.head(f"/v1/blobs/{sha256}")
    assert (there.status_code, there.headers["Content-Length"]) == (200, "104")
    again = client.post("/v1/models", json={"blob": sha256}, params={"name": "again"})
    assert (again.status_code, again.json()["state"]) == (201, "checking")
    service.inspect(again.json()["id"], service.inspection)
    first, second = (client.get(f"/v1/models/{one}").json() for one in (model, again.json()["id"]))
    assert (second["state"], second["artifact"]) == ("ready", first["artifact"])
    # It is no dataset, and nobody else's.
    for who, path in ((client, "/v1/datasets"), (stranger, "/v1/models")):
        refused = who.post(path, json={"blob": sha256})
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown_blob")
    for one in (first, second):
        client.delete(f"/v1/models/{one['id']}")
    assert client.head(f"/v1/blobs/{sha256}").status_code == 404
    assert client.post("/v1/models", json={"blob": sha256}).status_code == 422


def test_deleted_things_are_gone(service, client):
    model, dataset = service.ready_model(client, b"to go"), service.ready_dataset(client, b"also to go")
    job = client.post("/v1/jobs", json={"model": model, "recipe": {"passes": [{"type": "simplify"}]}}).json()
    kept = client.delete(f"/v1/models/{model}")
    assert (kept.status_code, kept.json()["code"]) == (409, "model_in_use")
    client.post(f"/v1/jobs/{job['id']}:cancel")
    for path in (f"/v1/models/{model}", f"/v1/datasets/{dataset}"):
        sha256 = client.get(path).json()["sha256"]
        gone = client.delete(path)
        assert (gone.status_code, gone.content) == (204, b"")
        assert client.get(path).status_code == client.get(f"{path}/content").status_code == 404
        assert client.delete(path).status_code == 404
        assert client.head(f"/v1/blobs/{sha256}").status_code == 404
        assert not any(file.name == sha256 for file in service.stored_files())
    assert client.get(f"/v1/jobs/{job['id']}").json()["model"] == model


def test_a_dataset_comes_back_as_it_was(service, client):
    dataset = client.post("/v1/datasets", content=b"PK data", headers=RAW, params={"name": "d"}).json()
    answer = client.get(f"/v1/datasets/{dataset['id']}/content")
    assert answer.content == b"PK data"
    assert 'filename="d.npz"' in answer.headers["Content-Disposition"]
    changed = client.patch(f"/v1/datasets/{dataset['id']}", json={"name": "better"})
    assert changed.json()["name"] == "better"


def test_what_outputs_are_is_declared_with_the_upload(service, client):
    outputs = {"logits": {"kind": "classes", "weight": 2.0}, "aux": {"ignore": True}}
    query = {"metric": "top1", "outputs": json.dumps(outputs)}
    dataset = client.post("/v1/datasets", params=query, content=b"arrays", headers=RAW).json()
    declared = {name: {"kind": None, "weight": None, "ignore": False, **one} for name, one in outputs.items()}
    assert (dataset["metric"], dataset["outputs"]) == ("top1", declared)
    assert client.get(f"/v1/datasets/{dataset['id']}").json()["outputs"] == declared
    with service.database.reading() as session:
        row = session.get_one(Dataset, dataset["id"])
    assert row.declaration == {"metric": "top1", "outputs": outputs}


@pytest.mark.parametrize(
    ("outputs", "told"),
    [("{", "JSON"), ("[]", "object"), ('{"a": {"kind": 1}}', "a.kind"), ('{"a": {"size": 1}}', "a.size"),
     ('{"a": {"weight": -1}}', "a.weight"), ('{"a": {}}', "say a `kind`"), ('{"a": {"kind": "vectors"}}', "a.kind"),
     ("{" + ",".join(f'"{n}": {{"ignore": true}}' for n in range(65)) + "}", "64")],
)  # fmt: skip
def test_odd_declarations_are_refused_in_words(client, outputs, told):
    answer = client.post("/v1/datasets", params={"outputs": outputs}, content=b"x", headers=RAW)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["parameter"] == "outputs"
    assert told in error["detail"]
