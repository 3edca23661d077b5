"""Links: one artifact, for a time, as long as the key that made them is valid; nothing else, and nobody else's."""

import hashlib
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from typer.testing import CliRunner

import onnxpress
from onnxpress.cli import app
from services import download_links, keys
from services.server_secret import open_server_secret

CONTENT = b"a network to be given away"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def shared(service):
    with service.client() as client:
        service.ready_model(client, CONTENT)
    with onnxpress.Client(service.url, service.keys["alpha"]) as client:
        yield client.artifacts.link(SHA256, name="small.onnx")


def test_whoever_has_the_link_has_the_file_with_all_that_a_download_has(shared):
    answer = httpx.get(shared)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="small.onnx"'
    assert "Repr-Digest" in answer.headers
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    part = httpx.get(shared, headers={"Range": "bytes=2-8"})
    assert (part.status_code, part.content) == (206, CONTENT[2:9])


@pytest.mark.parametrize("field", ["tenant", "key", "expires", "name", "signature"])
def test_a_link_that_was_changed_is_none(service, shared, field):
    parts = urlsplit(shared)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    changed = str(int(query[field]) + 1) if field == "expires" else query[field] + "0"
    without = {name: value for name, value in query.items() if name != field}
    for told in ({**query, field: changed}, without):
        answer = httpx.get(f"{service.url}{parts.path}?{urlencode(told)}")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    other = httpx.get(f"{service.url}/v1/links/{'0' * 64}?{parts.query}")
    assert other.status_code == 401


def test_a_link_ends_with_its_time_and_with_its_key(service):
    secret = open_server_secret(service.settings)
    made = service.new_key(scopes=("read",))
    with service.database.reading() as session:
        caller = keys.authenticate(session, made.text)
        past = download_links.make(session, caller, SHA256, "", datetime.now(UTC) - timedelta(seconds=1))
        later = download_links.make(session, caller, SHA256, "", datetime.now(UTC) + timedelta(hours=1))

    def follow(link):
        query = {
            "tenant": link.tenant_id,
            "key": link.key_id,
            "expires": link.expires,
            "signature": link.signature(secret),
        }
        return httpx.get(f"{service.url}/v1/links/{SHA256}", params=query)

    assert (follow(past).status_code, follow(past).json()["code"]) == (410, "link_expired")
    assert follow(later).content == CONTENT
    with service.database.transaction() as session:
        keys.revoke(session, "alpha", made.row.id)
    assert follow(later).status_code == 401


def test_links_are_made_of_ones_own_files_and_for_no_longer_than_is_allowed(service, client, stranger, shared):
    assert stranger.post("/v1/links", json={"sha256": SHA256}).status_code == 404
    assert client.post("/v1/links", json={"sha256": "0" * 64}).status_code == 404
    long = client.post("/v1/links", json={"sha256": SHA256, "hours": 8000})
    assert (long.status_code, long.json()["errors"][0]["pointer"]) == (422, "/hours")
    metrics = {"Authorization": f"Bearer {service.new_key(scopes=('metrics',)).text}"}
    assert httpx.post(f"{service.url}/v1/links", headers=metrics, json={"sha256": SHA256}).status_code == 403
    # What is in no row cannot be in a backup of them either.
    signature = parse_qs(urlsplit(shared).query)["signature"][0]
    stored = b"".join(path.read_bytes() for path in service.settings.data_dir.glob("onnxpress.db*"))
    assert signature.encode() not in stored


def test_the_command_line_gives_a_link(service, client):
    model = service.ready_model(client, b"named on the command line")
    env = {"ONNXPRESS_URL": service.url, "ONNXPRESS_API_KEY": service.keys["alpha"]}
    made = CliRunner().invoke(app, ["link", model, "--hours", "2"], env=env)
    assert made.exit_code == 0, made.stderr
    answer = httpx.get(made.stdout.strip())
    assert answer.content == b"named on the command line"
    assert 'filename="net.onnx"' in answer.headers["Content-Disposition"]
    assert CliRunner().invoke(app, ["link", "nothing"], env=env).exit_code == 2
