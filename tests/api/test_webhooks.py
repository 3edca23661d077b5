"""Webhooks over HTTP and by the command line: made, tried, looked at, sent again, ended."""

import json

import pytest
import standardwebhooks
from typer.testing import CliRunner

from onnxpress.cli import app
from settings import Settings

from ..webhook_receiver import Receiver


@pytest.fixture(scope="module")
def service(new_service, tmp_path_factory):
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), webhook_networks="127.0.0.0/8", reconcile_s=0.05)
    with new_service(settings) as made:
        yield made


@pytest.fixture(scope="module")
def admin_key(service):
    return service.new_key(scopes=("write", "admin")).text


@pytest.fixture
def admin(service, admin_key):
    with service.client() as made:
        made.headers["Authorization"] = f"Bearer {admin_key}"
        yield made


def test_a_webhook_is_made_with_a_secret_that_is_shown_once_and_stored_nowhere(service, admin):
    body = {"url": "https://hooks.example.com/x", "events": ["job.failed"]}
    first = admin.post("/v1/webhooks", json=body, headers={"Idempotency-Key": "one"})
    again = admin.post("/v1/webhooks", json=body, headers={"Idempotency-Key": "one"}).json()
    assert first.status_code == 201
    made = first.json()
    assert made["secret"].startswith("whsec_")
    assert (again["id"], again["secret"]) == (made["id"], None)
    assert "secret" not in admin.get(first.headers["Location"]).json()
    assert made["secret"] not in admin.get("/v1/webhooks").text
    stored = b"".join(path.read_bytes() for path in service.settings.data_dir.glob("onnxpress.db*"))
    assert made["url"].encode() in stored
    assert made["secret"].removeprefix("whsec_").encode() not in stored
    assert admin.delete(first.headers["Location"]).status_code == 204
    assert admin.get(first.headers["Location"]).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://169.254.169.254/latest"}, "/url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/url"),
        ({"url": "gopher://x"}, "/url"),
        ({"url": "https://a.example", "events": ["job.started"]}, "/events/0"),
        ({"url": "https://a.example", "method": "GET"}, "/method"),
    ],
)
def test_what_could_never_be_sent_is_refused_with_its_field(admin, body, pointer):
    answer = admin.post("/v1/webhooks", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_only_the_tenants_administrators_see_its_webhooks(service, admin):
    made = admin.post("/v1/webhooks", json={"url": "https://hooks.example.com/"}).json()["id"]
    with service.client() as writer:
        assert writer.get("/v1/webhooks").status_code == 403
        assert writer.post("/v1/webhooks", json={"url": "https://x.example"}).status_code == 403
    with service.client() as stranger:
        stranger.headers["Authorization"] = f"Bearer {service.new_key('beta', scopes=('admin',)).text}"
        assert stranger.get("/v1/webhooks").json() == {"items": []}
        for path in (made, f"{made}/deliveries", f"{made}/deliveries/none"):
            assert stranger.get(f"/v1/webhooks/{path}").status_code == 404
        for verb in (":ping", ":rotate"):
            assert stranger.post(f"/v1/webhooks/{made}{verb}").status_code == 404
    admin.delete(f"/v1/webhooks/{made}")


def test_no_tenant_has_webhooks_without_end(admin):
    made = [admin.post("/v1/webhooks", json={"url": f"https://hooks.example.com/{i}"}) for i in range(21)]
    assert [one.status_code for one in made] == [201] * 20 + [409]
    assert made[-1].json()["code"] == "too_many_webhooks"
    for one in made[:-1]:
        admin.delete(one.headers["Location"])


def test_the_command_line_from_the_first_ping_to_the_replay(service, admin_key):
    def run(*words):
        env = {"ONNXPRESS_URL": service.url, "ONNXPRESS_API_KEY": admin_key, "COLUMNS": "160"}
        return CliRunner().invoke(app, ["webhooks", *words], env=env)

    with Receiver(204, 500, 204) as receiver:
        secret = run("create", receiver.url, "--event", "model.ready").stdout.strip()
        webhook = run("list").stdout.strip()
        assert run("ping", webhook).exit_code == 0
        headers, body = receiver.messages[0]
        assert standardwebhooks.Webhook(secret).verify(body, headers)["type"] == "webhook.ping"
        failed = run("ping", webhook, "--json")
        told = json.loads(failed.stdout)
        assert (failed.exit_code, told["exit_code"]) == (4, 4)
        assert told["delivery"]["attempts"][0]["status"] == 500
        again = run("replay", webhook, told["delivery"]["id"])
        assert again.stdout.strip() == told["delivery"]["id"]
        service.until(lambda: len(run("deliveries", webhook, "--status", "delivered").stdout.split()) == 2)
        with service.client() as client:
            service.ready_model(client)
        service.until(lambda: len(receiver.messages) == 4)
        assert json.loads(receiver.messages[3][1])["type"] == "model.ready"
    assert run("replay", webhook).exit_code == 2
    assert run("change", webhook, "--disable").exit_code == 0
    assert json.loads(run("list", "--json").stdout)["items"][0]["disabled_by"] == "owner"
    assert run("rotate", webhook).stdout.strip() not in {"", secret}
    assert run("delete", webhook).exit_code == 0
    assert run("list").stdout == ""
