"""No key, no handler; another tenant's key, no object."""

import http.client
import json
import re
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from api.pages import app as pages
from services import keys
from settings import Settings

RAW = {"Content-Type": "application/octet-stream"}
DESCRIPTION = {"/openapi.json", "/docs", "/docs/reference.css"}
OPEN = {"/livez", "/readyz", *DESCRIPTION}
# Where a browser becomes somebody, and what the pages look like.
PAGES_FOR_ALL = {("GET", "/sign-in"), ("POST", "/sign-in"), ("GET", "/static/{version}/{name}")}


def routes(app):
    """Every path and method that the application answers, however its routers are nested."""
    found = set(walk(app.routes))
    described = {(method.upper(), path) for path, ways in app.openapi()["paths"].items() for method in ways}
    of_pages = set(walk(pages.router.routes))
    assert found == described | {("GET", path) for path in DESCRIPTION} | of_pages
    return sorted(found - of_pages)


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
        "number": "1",
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


def test_every_page_asks_who_it_is(service, ids):
    asked = set(walk(pages.router.routes)) - PAGES_FOR_ALL
    with httpx.Client(base_url=service.url) as nobody:
        for method, path in sorted(asked):
            assert send(nobody, method, path, ids).status_code in {303, 401, 403}, f"{method} {path}"
    assert len(asked) >= 10


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
                unsearched = any(
                    word in path for word in ("/front", "/trials", ":pause", ":resume", ":pick", "/loading")
                )
                assert own in {200, 202, 409 if "report" in path or unsearched else 200}, f"{method} {path}"
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


@pytest.fixture
def admin(service):
    text = service.new_key(scopes=("admin",)).text
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {text}"}) as made:
        yield made


def test_keys_are_made_shown_once_and_revoked(service, admin):
    answer = admin.post("/v1/keys", json={"name": "ci", "scopes": ["write"]})
    assert answer.status_code == 201
    made = answer.json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(service.url + "/v1/models", headers=bearer).status_code == 200
    listed = {one["id"]: one for one in admin.get("/v1/keys").json()["items"]}
    assert listed[made["id"]]["scopes"] == ["write"]
    assert made["key"].rpartition("_")[2] not in admin.get("/v1/keys").text
    assert admin.get(answer.headers["Location"]).json() == listed[made["id"]]
    revoked = admin.delete(f"/v1/keys/{made['id']}")
    assert (revoked.status_code, revoked.json()["revoked_at"] is None) == (200, False)
    assert httpx.get(service.url + "/v1/models", headers=bearer).status_code == 401
    # For ever, whatever its end is set to.
    admin.patch(f"/v1/keys/{made['id']}", json={"expires_at": None})
    assert httpx.get(service.url + "/v1/models", headers=bearer).status_code == 401


def test_a_key_expires_when_it_is_told_to(service, admin):
    later, before = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=1)
    body = {"name": "ci", "scopes": ["read"], "expires_at": later.isoformat()}
    made = admin.post("/v1/keys", json=body).json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(service.url + "/v1/models", headers=bearer).status_code == 200
    admin.patch(f"/v1/keys/{made['id']}", json={"expires_at": before.isoformat()})
    assert httpx.get(service.url + "/v1/models", headers=bearer).status_code == 401


def test_the_same_request_for_a_key_makes_one_and_shows_it_once(admin):
    headers = {"Idempotency-Key": "one-key"}
    first, again = (
        admin.post("/v1/keys", json={"name": "ci", "scopes": ["read"]}, headers=headers).json() for _ in range(2)
    )
    assert first["id"] == again["id"]
    assert first["key"]
    assert again["key"] is None


def test_a_key_that_sends_too_fast_is_slowed_down(new_service, tmp_path):
    # So rarely that no machine is slow enough for one more while the test sends its five.
    settings = Settings(data_dir=tmp_path, rate_per_s=0.001, rate_burst=3)
    with new_service(settings) as service, service.client() as client, service.client("beta") as other:
        answers = [client.get("/v1/models") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[3].json()["code"] == "rate_limited"
        assert answers[3].json()["retryable"]
        assert 500 <= int(answers[3].headers["Retry-After"]) <= 1000
        assert other.get("/v1/models").status_code == 200
        assert client.get("/livez").status_code == 200


def test_quotas_are_told_with_a_time_to_come_back(new_service, tmp_path):
    with (
        new_service(Settings(data_dir=tmp_path, quota_bytes=4_000, quota_jobs=1)) as service,
        service.client() as client,
    ):
        model = service.ready_model(client, b"12345678")
        full = client.post("/v1/models", content=b"1" * 3_900, headers=RAW)
        assert (full.status_code, full.json()["code"], full.headers["Retry-After"]) == (429, "quota_bytes", "3600")
        streamed = client.post("/v1/models", content=iter([b"1" * 3_900]), headers=RAW)
        assert (streamed.status_code, streamed.json()["code"]) == (429, "quota_bytes")
        assert len(service.stored_files()) == 1
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        assert client.post("/v1/jobs", json=body).status_code == 202
        busy = client.post("/v1/jobs", json=body)
        assert (busy.status_code, busy.json()["code"]) == (429, "quota_jobs")
        assert busy.json()["hint"]


def test_who_has_used_up_the_quota_changes_nothing_but_may_delete(new_service, tmp_path):
    with new_service(Settings(data_dir=tmp_path, quota_bytes=3_500)) as service, service.client() as client:
        model = service.ready_model(client, b"12345678")
        # Each change is an event that stays with the network.
        answers = [client.patch(f"/v1/models/{model}", json={"name": f"n{number}"}) for number in range(12)]
        assert [answer.status_code for answer in answers[:2]] == [200, 200]
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "quota_bytes")
        moved = client.put("/v1/aliases/best", json={"model": model})
        assert (moved.status_code, moved.json()["code"]) == (429, "quota_bytes")
        assert client.delete(f"/v1/models/{model}").status_code == 204


def test_a_quota_is_told_of_before_the_body_is_sent(new_service, tmp_path):
    with new_service(Settings(data_dir=tmp_path, quota_bytes=1 << 20)) as service:
        connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/v1/models")
        for name, value in {
            "Authorization": f"Bearer {service.keys['alpha']}",
            "Content-Length": "1048577",
            **RAW,
        }.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (429, "quota_bytes")
        connection.close()


def test_metrics_are_for_prometheus(service, client, ids):
    headers = {"Authorization": f"Bearer {service.new_key(scopes=('metrics', 'operator')).text}"}
    answer = httpx.get(service.url + "/metrics", headers=headers)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+({([a-z]+="[^"]*",?)+})? [0-9.e+-]+', line) for line in samples)
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} >= {
        "onnxpress_units",
        "onnxpress_queue_age_seconds",
        "onnxpress_job_failures_total",
        "onnxpress_job_run_seconds",
        "onnxpress_http_answers_total",
    }
    assert any(line.startswith('onnxpress_units{queue="run.cpu",status="queued"}') for line in samples)
    assert any(line.startswith('onnxpress_queue_age_seconds{queue="run.cpu"}') for line in samples)
    assert any('route="/v1/models",status="201"' in line for line in samples)


def metrics_of(service, tenant, *scopes):
    headers = {"Authorization": f"Bearer {service.new_key(tenant, scopes).text}"}
    text = httpx.get(service.url + "/metrics", headers=headers).raise_for_status().text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_only_an_operator_sees_the_metrics_of_all_tenants(service, ids):
    queued = 'onnxpress_units{queue="run.cpu",status="queued"}'
    stored = "onnxpress_stored_bytes"
    own, foreign = metrics_of(service, "alpha", "metrics"), metrics_of(service, "beta", "admin")
    everything = metrics_of(service, "beta", "metrics", "operator")
    assert everything[queued] == own[queued] > 0
    assert queued not in foreign
    assert everything[stored] == own[stored] > foreign[stored] == 0
    assert not any("http" in name or "workers" in name or "retention" in name for name in {**own, **foreign})
    assert any("http" in name for name in everything)


def test_an_operator_alone_reads_nothing_of_a_tenant(service):
    operator = {"Authorization": f"Bearer {service.new_key(scopes=('operator',)).text}"}
    for path in ("/metrics", "/v1/models"):
        assert httpx.get(service.url + path, headers=operator).status_code == 403
