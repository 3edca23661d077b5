"""No key, no handler; another tenant's key, no object."""

import re
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from services import keys

RAW = {"Content-Type": "application/octet-stream"}
OPEN = {"/livez", "/readyz", "/openapi.json"}


def routes(app):
    """Every path and method that the application answers, however its routers are nested."""
    # Starlette gives its own route for the description a HEAD.
    found = set(walk(app.routes)) - {("HEAD", "/openapi.json")}
    described = {(method.upper(), path) for path, ways in app.openapi()["paths"].items() for method in ways}
    assert found == described | {("GET", "/openapi.json")}
    return sorted(found)


def walk(some):
    for route in some:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(route, "methods"):
            yield from ((method, route.path) for method in route.methods)
        else:
            assert hasattr(inner, "routes"), f"{route} cannot be walked"
            yield from walk(inner.routes)


def filled(path, **ids):
    return re.sub(r"{(\w+)}", lambda part: ids.get(part[1], "unknown"), path)


def send(client, method, path, ids):
    body = {"content": b"x", "headers": RAW} if path in {"/v1/models", "/v1/datasets"} else {"json": {}}
    if method == "PATCH":
        body = {"json": {"expires_at": None} if "key_id" in path else {"name": "renamed"}}
    return client.request(method, filled(path, **ids), **(body if method in {"POST", "PATCH"} else {}))


@pytest.fixture(scope="module")
def ids(service):
    with service.client() as client:
        model = service.ready_model(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        job = client.post("/v1/jobs", json=body).json()["id"]
        digest = client.get(f"/v1/models/{model}").json()["sha256"]
        dataset = service.ready_dataset(client)
    return {
        "model_id": model,
        "dataset_id": dataset,
        "job_id": job,
        "key_id": service.new_key().row.id,
        "sha256": digest,
        "format": "json",
        "type": "simplify",
    }


def test_every_route_asks_for_a_key(service, ids):
    asked = 0
    with httpx.Client(base_url=service.url) as nobody:
        for method, path in routes(service.app):
            answer = send(nobody, method, path, ids)
            if path in OPEN:
                assert answer.status_code == 200, path
                continue
            asked += 1
            assert answer.status_code == 401, f"{method} {path}: {answer.text}"
            assert method == "HEAD" or answer.json()["code"] == "unauthorized"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert asked >= 30


def test_another_tenants_objects_are_not_there(service, ids, client, stranger):
    seen = 0
    names = ("model_id", "dataset_id", "job_id", "key_id")
    everything = {"Authorization": f"Bearer {service.new_key('beta', scopes=keys.SCOPES).text}"}
    with httpx.Client(base_url=service.url, headers=everything) as powerful:
        for method, path in routes(service.app):
            if not any(f"{{{name}}}" in path for name in (*names, "sha256")):
                continue
            seen += 1
            foreign = send(powerful, method, path, ids)
            missing = send(powerful, method, path, {**ids, **dict.fromkeys(names, "none")} | {"sha256": "0" * 64})
            assert foreign.status_code == missing.status_code == 404, f"{method} {path}: {foreign.text}"
            # Nor can it be told from one that does not exist.
            if method != "HEAD":
                told, same = foreign.json(), missing.json()
                assert {**told, "request_id": ""} == {**same, "request_id": ""}
            # What the owner may do, as far as it leaves the objects there and comes to an end.
            if method != "DELETE" and "key_id" not in path and not path.endswith("/events"):
                own = send(client, method, path, ids).status_code
                assert own in {200, 202, 404 if "report" in path else 200}, f"{method} {path}"
    assert seen >= 20
    for path in ("/v1/models", "/v1/datasets", "/v1/jobs"):
        assert stranger.get(path).json()["items"] == []


def test_a_job_cannot_name_another_tenants_model(ids, stranger):
    body = {"model": ids["model_id"], "dataset": ids["dataset_id"], "recipe": {"passes": [{"type": "simplify"}]}}
    answer = stranger.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/model", "/dataset"]
    assert (
        stranger.post("/v1/datasets", params={"model": ids["model_id"]}, content=b"x", headers=RAW).status_code == 404
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer opk",
        "Bearer opk_x_y",
        "Basic b3Br",
        "Bearer opk_a_b_c",
        "bearer \xe9_\xe9_\xe9",
    ],
)
def test_what_is_not_a_key_is_refused(service, value):
    answer = httpx.get(service.url + "/v1/models", headers=[(b"authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_wrong_secret_an_expired_and_a_revoked_key_look_the_same(service):
    good = service.new_key()
    expired = service.new_key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked = service.new_key()
    with service.database.transaction() as session:
        keys.revoke(session, "alpha", revoked.row.id)
    wrong = good.text[:-1] + ("0" if good.text[-1] != "0" else "1")
    answers = [
        httpx.get(service.url + "/v1/models", headers={"Authorization": f"Bearer {text}"})
        for text in (wrong, expired.text, revoked.text)
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert httpx.get(service.url + "/v1/models", headers={"Authorization": f"Bearer {good.text}"}).status_code == 200


def test_a_key_does_what_its_scopes_say(service):
    reader = {"Authorization": f"Bearer {service.new_key(scopes=('read',)).text}"}
    writer = {"Authorization": f"Bearer {service.new_key(scopes=('write',)).text}"}
    metrics = {"Authorization": f"Bearer {service.new_key(scopes=('metrics',)).text}"}
    for headers in (reader, writer):
        assert httpx.get(service.url + "/metrics", headers=headers).status_code == 403
        assert httpx.get(service.url + "/v1/keys", headers=headers).status_code == 403
    assert httpx.get(service.url + "/metrics", headers=metrics).status_code == 200
    assert httpx.get(service.url + "/v1/models", headers=reader).status_code == 200
    refused = httpx.post(service.url + "/v1/models", headers={**reader, **RAW}, content=b"x")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert httpx.post(service.url + "/v1/models", headers={**writer, **RAW}, content=b"x").status_code == 201
    assert httpx.get(service.url + "/v1/models", headers=metrics).status_code == 403


def test_every_answer_carries_its_request_id_and_guards_browsers(service, client):
    own = uuid.uuid4().hex
    for answer in (
        client.get("/livez", headers={"X-Request-Id": own}),
        client.get("/v1/nothing", headers={"X-Request-Id": own}),
    ):
        assert answer.headers["X-Request-Id"] == own
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers
    made_up = client.get("/livez", headers={"X-Request-Id": "a b\tc"}).headers["X-Request-Id"]
    assert made_up.startswith("req_")
