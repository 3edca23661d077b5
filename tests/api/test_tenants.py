"""Tenants with limits of their own, made and changed by an operator, seen by themselves."""

import httpx
import pytest

from models import ROW_BYTES
from services import keys
from settings import Settings

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def operator(service):
    text = service.new_key(scopes=("operator",)).text
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {text}"}) as made:
        yield made


def bearer(service, tenant, **more):
    return {"Authorization": f"Bearer {service.new_key(tenant, **more).text}"}


def test_a_tenant_is_made_with_its_first_key_and_sees_what_it_has(service, operator):
    answer = operator.post(
        "/v1/tenants", json={"id": "vision", "name": "Vision", "quota_bytes": 2_000, "quota_jobs": 0}
    )
    assert answer.status_code == 201
    assert operator.get(answer.headers["Location"]).json()["quotas"] == {"bytes": 2_000, "jobs": 0, "cpu_s": 0.0}
    assert operator.post("/v1/tenants", json={"id": "vision"}).json()["code"] == "tenant_exists"
    key = operator.post("/v1/tenants/vision/keys", json={"name": "first", "scopes": ["write"]}).json()["key"]
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.post("/v1/models", content=b"12345678", headers=RAW).status_code == 201
        assert client.post("/v1/models", content=b"1" * 1_900, headers=RAW).json()["code"] == "quota_bytes"
        own = client.get("/v1/tenant").json()
        assert (own["id"], own["quotas"]["bytes"]) == ("vision", 2_000)
        # The bytes, and the row that tells of them.
        assert 8 + ROW_BYTES < own["usage"]["bytes"] < 8 + 2 * ROW_BYTES
        operator.patch("/v1/tenants/vision", json={"quota_bytes": None})
        assert client.get("/v1/tenant").json()["quotas"]["bytes"] == service.settings.quota_bytes
        assert client.post("/v1/models", content=b"123", headers=RAW).status_code == 201


def test_no_administrator_of_a_tenant_reaches_over_it(service, operator):
    admin = bearer(service, "alpha", scopes=("read", "write", "admin", "metrics"))
    for method, path in (("GET", "/v1/tenants"), ("GET", "/v1/tenants/beta"), ("PATCH", "/v1/tenants/alpha")):
        assert httpx.request(method, service.url + path, headers=admin, json={}).status_code == 403
    asked = {"name": "more", "scopes": ["operator"]}
    assert httpx.post(f"{service.url}/v1/keys", headers=admin, json=asked).json()["code"] == "forbidden"
    assert operator.get("/v1/models").status_code == 403
    assert operator.get("/v1/tenants/nobody").status_code == 404
    assert operator.post("/v1/tenants/nobody/keys", json={"name": "x", "scopes": ["read"]}).status_code == 404


@pytest.mark.parametrize(
    "body", [{"id": "../x"}, {"id": "x", "quota_bytes": -1}, {"id": "x", "quota": 1}, {"id": "x", "rate_burst": 0}]
)
def test_what_is_no_tenant_is_refused_with_the_field(operator, body):
    answer = operator.post("/v1/tenants", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{[*body][-1]}"


def test_a_suspended_tenants_keys_open_nothing_until_it_is_resumed(service, operator):
    operator.post("/v1/tenants", json={"id": "late"})
    headers = bearer(service, "late")
    assert operator.patch("/v1/tenants/late", json={"suspended": True}).json()["suspended_at"]
    assert httpx.get(f"{service.url}/v1/models", headers=headers).status_code == 401
    operator.patch("/v1/tenants/late", json={"suspended": False})
    assert httpx.get(f"{service.url}/v1/models", headers=headers).status_code == 200


def test_all_keys_of_a_tenant_share_its_rate(service, operator):
    # So rarely that no machine is slow enough for one more while the test sends its four.
    operator.post("/v1/tenants", json={"id": "hasty", "rate_per_s": 0.001, "rate_burst": 3})
    two = [bearer(service, "hasty"), bearer(service, "hasty")]
    answers = [httpx.get(f"{service.url}/v1/models", headers=two[turn % 2]) for turn in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].json()["code"] == "rate_limited"
    assert httpx.get(f"{service.url}/v1/models", headers=bearer(service, "beta")).status_code == 200


def test_an_older_admin_key_is_given_the_newer_scopes(service, tmp_path):
    settings = Settings(data_dir=service.settings.data_dir)
    path = tmp_path / "admin.key"
    keys.ensure_admin_key(settings, path)
    with service.database.transaction() as session:
        key_id = keys.authenticate(session, path.read_text().strip()).key_id
        keys.get_key(session, keys.DEFAULT_TENANT, key_id).scopes = ["admin"]
    keys.ensure_admin_key(settings, path)
    with service.database.reading() as session:
        assert keys.authenticate(session, path.read_text().strip()).scopes == set(keys.SCOPES)
