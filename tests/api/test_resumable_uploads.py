"""Files in pieces: what is safe stays, what is wrong does not, and any API process goes on with what another one began."""

import base64
import contextlib
import hashlib
import socket
import threading
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import update

import onnxpress
from models import Upload
from onnxpress import client as sdk
from onnxpress import resumable_upload
from services import resumable_uploads, retention, tenants
from services.storage import open_store
from settings import Settings

from .conftest import serving

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}
CONTENT = bytes(range(256)) * 4000


def begin(client, content=CONTENT, **metadata):
    told = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items())
    headers = {**TUS, "Upload-Length": str(len(content)), **({"Upload-Metadata": told} if told else {})}
    answer = client.post("/v1/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def send(client, location, content, offset, **headers):
    return client.patch(location, content=content, headers={**PIECE, "Upload-Offset": str(offset), **headers})


def offset(client, location):
    answer = client.head(location, headers=TUS)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    return int(answer.headers["Upload-Offset"])


def parts(service):
    return [path for path in service.stored_files() if "uploads" in path.parts]


def test_a_file_in_pieces_becomes_a_network(service, client):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    spoken = client.options("/v1/uploads").headers
    assert "termination" in spoken["Tus-Extension"]
    assert spoken["Tus-Max-Size"] == str(8 << 20)
    location = begin(client, filename="net.onnx", sha256=sha256)
    for start in range(0, len(CONTENT), 500_000):
        answer = send(client, location, CONTENT[start : start + 500_000], start)
        assert (answer.status_code, answer.headers["Tus-Resumable"]) == (204, "1.0.0")
        assert int(answer.headers["Upload-Offset"]) == offset(client, location)
        assert answer.headers["Upload-Expires"].endswith("GMT")
    (listed,) = client.get("/v1/uploads", params={"sha256": sha256}).json()["items"]
    assert (listed["offset"], listed["name"]) == (len(CONTENT), "net.onnx")
    body, key = {"upload": location.rpartition("/")[2]}, {"Idempotency-Key": "one"}
    made = client.post("/v1/models", json=body, headers=key)
    assert made.status_code == 201, made.text
    assert (made.json()["name"], made.json()["sha256"]) == ("net", sha256)
    # The answer was lost: the same request gives it again; and the bytes can be had under another name.
    assert client.post("/v1/models", json=body, headers=key).json()["id"] == made.json()["id"]
    assert client.post("/v1/models", json=body, params={"name": "other"}).json()["sha256"] == sha256
    assert parts(service) == []
    assert client.get("/v1/uploads").json()["items"] == []


def test_the_first_bytes_may_come_with_the_request_and_data_likewise(client):
    headers = {**PIECE, "Upload-Length": str(len(CONTENT))}
    answer = client.post("/v1/uploads", headers=headers, content=CONTENT)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, str(len(CONTENT)))
    made = client.post("/v1/datasets", json={"upload": answer.headers["Location"].rpartition("/")[2]})
    assert made.json()["size_bytes"] == len(CONTENT)


def test_what_breaks_off_is_gone_on_with(service, client):
    location = begin(client)
    head = (
        f"PATCH {location} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['alpha']}\r\nTus-Resumable: 1.0.0\r\n"
        f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    )
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.encode() + CONTENT[:300_000])
    service.until(lambda: offset(client, location) == 300_000)
    assert send(client, location, CONTENT[300_000:], 300_000).status_code == 204
    made = client.post("/v1/models", json={"upload": location.rpartition("/")[2]}).json()
    assert made["sha256"] == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_piece_with_a_checksum_is_kept_whole_or_not_at_all(service, client, algorithm):
    location = begin(client)
    digest = base64.b64encode(hashlib.new(algorithm, CONTENT[:1000]).digest()).decode()
    wrong = send(client, location, CONTENT[1:1001], 0, **{"Upload-Checksum": f"{algorithm} {digest}"})
    assert (wrong.status_code, wrong.json()["code"], offset(client, location)) == (460, "checksum_mismatch", 0)
    assert parts(service) == []
    right = send(client, location, CONTENT[:1000], 0, **{"Upload-Checksum": f"{algorithm} {digest}"})
    assert (right.status_code, offset(client, location)) == (204, 1000)
    assert client.delete(location, headers=TUS).status_code == 204


def test_what_is_wrong_is_told_and_changes_nothing(service, client, stranger):
    location = begin(client)
    upload_id = location.rpartition("/")[2]
    refusals = [
        (send(client, location, b"x", 5), 409, "upload_offset"),
        (send(client, location, b"x", 0, **{"Tus-Resumable": "0.2.2"}), 412, "precondition_failed"),
        (send(client, location, b"x", 0, **{"Content-Type": "text/plain"}), 415, "unsupported_media_type"),
        (send(client, location, b"x", 0, **{"Upload-Checksum": "md5 eA=="}), 400, "bad_request"),
        (send(client, location, CONTENT + b"x", 0), 413, "too_large"),
        (client.post("/v1/models", json={"upload": upload_id}), 409, "upload_incomplete"),
        (client.post("/v1/models", json={"upload": "upl_none"}), 422, "invalid"),
        (client.post("/v1/uploads", headers={**TUS, "Upload-Length": str(1 << 40)}), 413, "too_large"),
        (client.post("/v1/uploads", headers={**TUS, "Upload-Length": "x"}), 422, "invalid"),
        (
            client.post("/v1/uploads", headers={**TUS, "Upload-Length": "1", "Upload-Metadata": "a !"}),
            400,
            "bad_request",
        ),
        (send(stranger, location, b"x", 0), 404, "not_found"),
        (stranger.post("/v1/models", json={"upload": upload_id}), 404, "not_found"),
        (stranger.delete(location, headers=TUS), 404, "not_found"),
    ]
    for answer, status, code in refusals:
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert "Tus-Resumable" in answer.headers or "models" in str(answer.url)
    assert refusals[1][0].headers["Tus-Version"] == "1.0.0"
    assert stranger.head(location, headers=TUS).status_code == 404
    assert offset(client, location) == 0
    assert parts(service) == []
    client.delete(location, headers=TUS)


def test_no_upload_has_pieces_without_end(service, client, monkeypatch):
    monkeypatch.setattr(resumable_uploads, "MOST_PARTS", 3)
    location = begin(client)
    for at in range(3):
        assert send(client, location, CONTENT[at : at + 1], at).status_code == 204
    answer = send(client, location, CONTENT[3:4], 3)
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_pieces")
    assert (offset(client, location), len(parts(service))) == (3, 3)
    client.delete(location, headers=TUS)


def test_other_bytes_than_announced_become_nothing(service, client):
    location = begin(client, b"abc", sha256="0" * 64)
    send(client, location, b"abc", 0)
    refused = client.post("/v1/models", json={"upload": location.rpartition("/")[2]})
    assert (refused.status_code, refused.json()["code"]) == (400, "digest_mismatch")
    client.delete(location, headers=TUS)
    assert parts(service) == []


def test_an_upload_takes_its_room_from_the_start_and_expires(service, client):
    before = client.get("/v1/tenant").json()["usage"]["bytes"]
    location = begin(client)
    send(client, location, CONTENT[:1000], 0)
    assert client.get("/v1/tenant").json()["usage"]["bytes"] == before + len(CONTENT)
    with service.database.transaction() as session:
        session.execute(update(Upload).values(touched_at=datetime(2020, 1, 1, tzinfo=UTC)))
    gone = send(client, location, b"x", 1000)
    assert (gone.status_code, gone.json()["code"]) == (410, "upload_expired")
    place = retention.Place(service.database, open_store(service.settings), service.settings.data_dir)
    retention.apply(place, service.settings)
    assert client.head(location, headers=TUS).status_code == 404
    assert parts(service) == []
    assert client.get("/v1/tenant").json()["usage"]["bytes"] == before


def test_a_quota_is_held_at_the_start_of_an_upload_and_not_twice_at_its_end(service, client):
    content = b"the last that fits" * 100
    room = client.get("/v1/tenant").json()["usage"]["bytes"] + len(content)
    with service.database.transaction() as session:
        tenants.change(session, "alpha", limits={"quota_bytes": room})
    location = begin(client, content)
    full = client.post("/v1/uploads", headers={**TUS, "Upload-Length": "1"})
    assert (full.status_code, full.json()["code"]) == (429, "quota_bytes")
    raw = client.post("/v1/models", content=b"x", headers={"Content-Type": "application/octet-stream"})
    assert raw.json()["code"] == "quota_bytes"
    send(client, location, content, 0)
    assert client.post("/v1/models", json={"upload": location.rpartition("/")[2]}).status_code == 201
    with service.database.transaction() as session:
        tenants.change(session, "alpha", limits={"quota_bytes": None})


def test_another_host_goes_on_with_it(new_service, tmp_path, request):
    """With nothing in common but Postgres and a bucket."""
    shared = {"database_url": request.getfixturevalue("postgres_url"), **request.getfixturevalue("bucket_fields")}
    with (
        new_service(Settings(data_dir=tmp_path / "a", **shared)) as service,
        serving(Settings(data_dir=tmp_path / "b", **shared)) as (_, url),
        service.client() as one,
        httpx.Client(base_url=url, headers=one.headers, timeout=30) as other,
    ):
        location = begin(one)
        send(one, location, CONTENT[:300_000], 0)
        assert offset(other, location) == 300_000
        send(other, location, CONTENT[300_000:], 300_000)
        made = one.post("/v1/models", json={"upload": location.rpartition("/")[2]})
        assert made.json()["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert list(open_store(service.settings).uploads()) == []


class Cutting:
    """A proxy that breaks the first connection that sends much, after some of it, and takes no other until it is mended."""

    def __init__(self, url, after):
        self._target = httpx.URL(url)
        self._after = after
        self.sent = 0
        self.is_cut = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def _serve(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
            else:
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        with client, socket.create_connection((self._target.host, self._target.port)) as server:
            up = threading.Thread(target=self._forward, args=(client, server, True))
            up.start()
            self._forward(server, client, False)
            up.join()

    def _forward(self, source, target, is_up):
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                self.sent += len(data) if is_up else 0
                target.sendall(data)
                if is_up and passed > self._after:
                    self.is_cut, self._after = True, float("inf")
                    break
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        # It wakes whoever accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


def test_the_client_goes_on_where_it_broke_off(service, monkeypatch, tmp_path):
    monkeypatch.setattr(sdk, "WORTH_RESUMING", 1 << 16)
    monkeypatch.setattr(resumable_upload, "PIECE", 2 << 20)
    path = tmp_path / "net.bin"
    path.write_bytes(b"resumed" + CONTENT * 3)
    proxy = Cutting(service.url, 1 << 20)
    # The process that it broke under is not the one that goes on.
    with (
        onnxpress.Client(proxy.url, service.keys["alpha"], patience=0.0) as first,
        pytest.raises(onnxpress.ServiceError),
    ):
        first.datasets.upload(path, wait=False)
    with service.client() as client:
        service.until(lambda: any(one["offset"] for one in client.get("/v1/uploads").json()["items"]))
    proxy.is_cut = False
    before, seen = proxy.sent, []
    with onnxpress.Client(proxy.url, service.keys["alpha"]) as second:
        made = second.datasets.upload(path, wait=False, progress=lambda done, _: seen.append(done))
    proxy.close()
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[0] > 500_000
    assert proxy.sent - before < path.stat().st_size - 500_000
