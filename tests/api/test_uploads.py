"""Raw uploads of models and datasets."""

import base64
import hashlib
import http.client
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api import middleware
from services.storage import Writer

RAW = {"Content-Type": "application/octet-stream"}


def sha256_header(content):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def incoming(service):
    return list((service.settings.data_dir / "store" / "incoming").iterdir())


def test_an_upload_is_stored_under_its_digest_and_checked(service, client):
    content = os.urandom(3 << 20)
    answer = client.post(
        "/v1/models", params={"name": "net"}, content=content, headers={**RAW, "Repr-Digest": sha256_header(content)}
    )
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert answer.headers["Location"] == f"/v1/models/{model['id']}"
    assert (model["name"], model["state"], model["size_bytes"]) == ("net", "checking", len(content))
    assert model["sha256"] == hashlib.sha256(content).hexdigest()
    service.inspect(model["id"], service.inspection)
    ready = client.get(answer.headers["Location"]).json()
    assert ready["state"] == "ready"
    assert ready["inspection"]["inputs"][0]["name"] == "x"
    assert model["id"] in [one["id"] for one in client.get("/v1/models").json()["items"]]


def test_a_body_without_a_length_is_streamed(client):
    answer = client.post("/v1/models", content=iter([b"a" * 100_000] * 30), headers=RAW)
    assert answer.status_code == 201
    assert answer.json()["size_bytes"] == 3_000_000


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
def test_other_bytes_than_announced_are_refused_and_leave_nothing(service, client, header):
    before = service.stored_files()
    answer = client.post("/v1/models", content=b"these", headers={**RAW, header: sha256_header(b"others")})
    assert answer.status_code == 400
    assert answer.json()["code"] == "digest_mismatch"
    assert service.stored_files() == before


def test_a_digest_that_cannot_be_read_is_named(client):
    answer = client.post("/v1/models", content=b"x", headers={**RAW, "Repr-Digest": "sha-256=:AAAA:"})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["parameter"] == "Repr-Digest"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/datasets"])
def test_over_the_limit_is_refused_before_the_body_comes(service, path):
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {service.keys['alpha']}")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str((8 << 20) + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    assert incoming(service) == []


def test_over_the_limit_is_refused_while_it_streams(service, client):
    before = service.stored_files()
    answer = client.post("/v1/models", content=iter([b"a" * (1 << 20)] * 9), headers=RAW)
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
    assert service.stored_files() == before


def test_an_empty_body_is_refused(service, client):
    before = service.stored_files()
    answer = client.post("/v1/models", content=b"", headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (400, "empty_body")
    assert service.stored_files() == before


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {}, RAW | {"Content-Encoding": "gzip"}])
def test_what_is_no_file_is_not_taken(client, headers):
    answer = client.post("/v1/models", content=b"x", headers=headers)
    assert answer.status_code == 415
    assert "Content-" in answer.json()["detail"]


def test_a_client_that_goes_away_leaves_nothing(service):
    before = service.stored_files()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        head = (
            f"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['alpha']}\r\n"
            "Content-Type: application/octet-stream\r\nContent-Length: 5000000\r\n\r\n"
        )
        link.sendall(head.encode() + b"x" * 2_500_000)
        service.until(lambda: any(path.stat().st_size for path in incoming(service)))
    service.until(lambda: incoming(service) == [])
    assert service.stored_files() == before


@pytest.mark.parametrize("path", ["/v1/models", "/v1/jobs"])
def test_a_client_that_falls_silent_is_sent_away(service, monkeypatch, path):
    monkeypatch.setattr(middleware, "SILENCE_S", 0.3)
    before = service.stored_files()
    host, port = service.url.removeprefix("http://").split(":")
    kind = "application/json" if path == "/v1/jobs" else "application/octet-stream"
    with socket.create_connection((host, int(port)), timeout=60) as link:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['alpha']}\r\n"
        link.sendall(f"{head}Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\n{{".encode())
        told = b"".join(iter(lambda: link.recv(1 << 16), b""))
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in told
    assert service.stored_files() == before


def test_the_same_upload_under_one_key_is_one_model(service, client):
    def post(_):
        with service.client() as own:
            return own.post("/v1/models", content=b"once", headers={**RAW, "Idempotency-Key": "up-1"})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(4)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post("/v1/models", content=b"other", headers={**RAW, "Idempotency-Key": "up-1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert incoming(service) == []


def test_wait_answers_as_soon_as_the_upload_is_ready(service, client):
    answers = []

    def upload():
        with service.client() as own:
            params = {"wait": 60, "name": "awaited"}
            answers.append(own.post("/v1/models", params=params, content=b"awaited", headers=RAW))

    def unchecked():
        return [one["id"] for one in client.get("/v1/models").json()["items"] if one["name"] == "awaited"]

    waiting = threading.Thread(target=upload)
    waiting.start()
    (model,) = service.until(unchecked)
    service.until_waiting(model, 1)
    service.inspect(model, service.inspection)
    service.until_woken([waiting])
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(201, "ready")]


def test_wait_ends_without_an_inspection(client):
    started = time.monotonic()
    answer = client.post("/v1/models", params={"wait": 0.3}, content=b"slow", headers=RAW)
    assert (answer.status_code, answer.json()["state"]) == (201, "checking")
    assert time.monotonic() - started > 0.25


def test_a_rejected_upload_is_422_and_its_bytes_go(service, client):
    before = service.stored_files()
    found = client.post("/v1/models", content=b"junk", headers={**RAW, "Idempotency-Key": "junk"}).json()
    problem = {
        "code": "model_invalid",
        "class": "user",
        "retryable": False,
        "message": "This is not an ONNX network.",
        "hint": "Export it again.",
    }
    service.inspect(found["id"], problem=problem)
    answer = client.post("/v1/models", content=b"junk", headers={**RAW, "Idempotency-Key": "junk"})
    assert answer.status_code == 422
    told = answer.json()
    assert (told["code"], told["detail"], told["hint"]) == (problem["code"], problem["message"], problem["hint"])
    assert answer.headers["Location"] == f"/v1/models/{found['id']}"
    row = client.get(answer.headers["Location"]).json()
    assert (row["state"], row["problem"]["code"], row["sha256"]) == ("rejected", "model_invalid", None)
    assert client.get(answer.headers["Location"] + "/content").status_code == 409
    assert service.stored_files() == before


def test_a_dataset_is_held_against_the_model_that_it_is_for(service, client):
    model = service.ready_model(client)
    wrong = {**service.dataset_inspection, "arrays": [{"name": "z", "dtype": "float32", "shape": [32, 4]}]}
    before = service.stored_files()
    params = {"model": model, "metric": "top1"}
    dataset = client.post("/v1/datasets", params=params, content=b"wrong names", headers=RAW).json()
    service.inspect(dataset["id"], wrong)
    row = client.get(f"/v1/datasets/{dataset['id']}").json()
    assert (row["state"], row["problem"]["code"]) == ("rejected", "dataset_invalid")
    assert "`" in row["problem"]["message"] or "input" in row["problem"]["message"]
    assert service.stored_files() == before
    right = client.post("/v1/datasets", params=params, content=b"right names", headers=RAW).json()
    service.inspect(right["id"], service.dataset_inspection)
    assert client.get(f"/v1/datasets/{right['id']}").json()["state"] == "ready"


def test_a_dataset_for_an_unknown_model_is_refused_before_its_body(client):
    answer = client.post("/v1/datasets", params={"model": "mdl_" + "0" * 26}, content=b"x", headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert client.post("/v1/datasets", params={"metric": "magic"}, content=b"x", headers=RAW).status_code == 422


def test_uploads_do_not_hold_up_the_event_loop(service, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    writing = Writer.append

    def write(writer, chunk):
        begun.set()
        assert go_on.wait(60)
        writing(writer, chunk)

    monkeypatch.setattr(Writer, "append", write)
    answers = []

    def upload():
        with service.client() as own:
            answers.append(own.post("/v1/models", content=os.urandom(6 << 20), headers=RAW))

    thread = threading.Thread(target=upload)
    thread.start()
    assert begun.wait(60)
    # The disk stands still, and others are served.
    with service.client() as own:
        assert own.get("/livez").status_code == 200
        assert own.get("/v1/models").status_code == 200
    assert answers == []
    go_on.set()
    thread.join(60)
    assert [answer.status_code for answer in answers] == [201]
