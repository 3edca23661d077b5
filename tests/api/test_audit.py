"""Who changed what is noted with the change, and only with it."""

import httpx
import pytest

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def admin(service):
    key = service.new_key(scopes=("admin",)).text
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as made:
        yield made


def changes(client, **query):
    return client.get("/v1/audit", params=query).json()["items"]


def test_every_request_that_changes_something_is_noted(service, client, admin):
    model = service.ready_model(client, b"audited")
    client.patch(f"/v1/models/{model}", json={"name": "better"}, headers={"X-Request-Id": "req-of-mine"})
    client.get(f"/v1/models/{model}/prunability")
    body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
    job = client.post("/v1/jobs", json=body).json()["id"]
    client.post(f"/v1/jobs/{job}:cancel")
    again = client.post(f"/v1/jobs/{job}:retry").json()["id"]
    client.post(f"/v1/jobs/{again}:cancel")
    search = client.post("/v1/jobs", json={"model": model, "goal": {"minimise": "size"}}).json()["id"]
    for verb in ("pause", "resume", "cancel"):
        client.post(f"/v1/jobs/{search}:{verb}")
    client.put("/v1/aliases/audited", json={"model": model})
    other = service.ready_model(client, b"audited too")
    client.put("/v1/aliases/audited", json={"model": other})
    client.post("/v1/aliases/audited:rollback", json={})
    client.delete("/v1/aliases/audited")
    client.delete(f"/v1/models/{model}")
    dataset = service.ready_dataset(client, b"audited data")
    client.patch(f"/v1/datasets/{dataset}", json={"tags": ["a"]})
    client.delete(f"/v1/datasets/{dataset}")
    key = admin.post("/v1/keys", json={"name": "short", "scopes": ["read"]}).json()["id"]
    admin.patch(f"/v1/keys/{key}", json={"expires_at": None})
    admin.delete(f"/v1/keys/{key}")
    found = [(one["action"], one["subject"]) for one in reversed(changes(admin))][-23:]
    assert found == [
        ("upload_model", model),
        ("change_model", model),
        ("get_prunability", model),
        ("create_job", job),
        ("cancel_job", job),
        ("retry_job", again),
        ("cancel_job", again),
        ("create_job", search),
        ("pause_job", search),
        ("resume_job", search),
        ("cancel_job", search),
        ("move_alias", "audited"),
        ("upload_model", other),
        ("move_alias", "audited"),
        ("roll_alias_back", "audited"),
        ("delete_alias", "audited"),
        ("delete_model", model),
        ("upload_dataset", dataset),
        ("change_dataset", dataset),
        ("delete_dataset", dataset),
        ("create_key", key),
        ("change_key", key),
        ("revoke_key", key),
    ]
    described = service.app.openapi()["paths"].items()
    writes = {way["operationId"] for _, ways in described for verb, way in ways.items() if verb not in {"get", "head"}}
    digest = client.get(f"/v1/models/{other}").json()["sha256"]
    assert client.post("/v1/links", json={"sha256": digest}).status_code == 201
    linked = changes(admin)[0]
    assert (linked["action"], linked["subject"]) == ("create_link", digest)
    told = {action for action, _ in found} | {"create_link"} | _noted_for_operators(service)
    # What is picked is noted too, of searches with a front, and a delivery that is sent again once it has ended. Of an
    # upload in pieces is noted what becomes of it: a model or a dataset.
    pieces = {name for name in writes if name.endswith(("_upload", "_uploads"))}
    assert told == writes - pieces - {"validate_job", "pick_point", "replay_delivery"} | {"get_prunability"}
    renamed = changes(admin, subject=model, action="change_model")
    assert [one["request_id"] for one in renamed] == ["req-of-mine"]
    mine = service.keys["alpha"].split("_")[1]
    assert renamed[0]["key"] == f"key_{mine}"
    assert {one["action"] for one in changes(admin, key=renamed[0]["key"], subject=job)} == {"create_job", "cancel_job"}


def _noted_for_operators(service):
    """Change webhooks and tenants; gives what was noted of it."""
    key = service.new_key(scopes=("admin", "operator"))
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key.text}"}, timeout=30) as operator:
        hook = operator.post("/v1/webhooks", json={"url": "https://hooks.example.com/audited"}).json()["id"]
        operator.patch(f"/v1/webhooks/{hook}", json={"description": "audited"})
        for verb, body in (("rotate", None), ("ping", None), ("replay", {"since": "2040-01-01T00:00:00Z"})):
            operator.post(f"/v1/webhooks/{hook}:{verb}", json=body)
        operator.delete(f"/v1/webhooks/{hook}")
        operator.post("/v1/tenants", json={"id": "audited", "name": "Audited"})
        operator.patch("/v1/tenants/audited", json={"quota_jobs": 1})
        operator.post("/v1/tenants/audited/keys", json={"name": "first", "scopes": ["read"]})
        return {one["action"] for one in changes(operator, key=key.row.id)}


def test_what_was_refused_or_only_read_is_not(service, client, admin):
    model = service.ready_model(client, b"read only")
    before = len(changes(admin, limit=200))
    client.get(f"/v1/models/{model}")
    client.patch(f"/v1/models/{model}", json={"alias": "UPPER"})
    client.delete("/v1/models/unknown")
    client.post("/v1/jobs", json={"model": model, "recipe": {"passes": [{"type": "quantize_static"}]}})
    client.post("/v1/jobs:validate", json={"model": model, "recipe": {"passes": [{"type": "simplify"}]}})
    assert len(changes(admin, limit=200)) == before


def test_it_is_for_admins_and_of_ones_own_tenant(service, client, admin):
    service.ready_model(client, b"another one")
    assert client.get("/v1/audit").status_code == 403
    key = service.new_key("beta", scopes=("admin",)).text
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}) as stranger:
        assert changes(stranger) == []
    first = admin.get("/v1/audit", params={"limit": 1}).json()
    second = admin.get("/v1/audit", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert first["items"][0]["id"] > second["items"][0]["id"]
