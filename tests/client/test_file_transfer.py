"""What arrives is complete and checked or not there at all; what is sent is what was hashed."""

import base64
import hashlib
import os
import time

import pytest

import onnxpress
from onnxpress.file_transfer import digest

BYTES = os.urandom(1 << 20)
SHA256 = hashlib.sha256(BYTES).hexdigest()
ETAG = {"ETag": f'"{SHA256}"'}
ADDRESS = f"/artifacts/{SHA256}"


def ranged(content, cut=None):
    """Give a script that serves ranges of the content."""

    def say(request):
        asked = request.headers.get("Range")
        if asked is None:
            return {"body": content, "cut": cut, "headers": ETAG}
        assert request.headers["If-Range"] == ETAG["ETag"]
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        return {"status": 206, "body": content[start:], "cut": cut, "headers": ETAG}

    return say


@pytest.fixture
def target(tmp_path):
    return tmp_path / "small.onnx"


def alone(target):
    """Whether nothing but the target is in its folder."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_download_arrives_whole(scripted, client, target):
    scripted.on("GET", ADDRESS, {"body": BYTES})
    seen = []
    assert client.artifacts.download(SHA256, target, progress=lambda done, total: seen.append((done, total))) == target
    assert target.read_bytes() == BYTES
    assert seen[-1] == (len(BYTES), len(BYTES))
    assert alone(target)
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_download_that_breaks_goes_on_where_it_broke(scripted, client, target):
    scripted.on("GET", ADDRESS, ranged(BYTES, cut=700_000), ranged(BYTES, cut=100_000), ranged(BYTES))
    client.artifacts.download(SHA256, target)
    assert target.read_bytes() == BYTES
    ranges = [request.headers.get("Range") for request in scripted.requests]
    assert ranges == [None, "bytes=700000-", "bytes=800000-"]
    assert alone(target)


def test_a_service_without_ranges_is_asked_for_all_of_it_again(scripted, client, target):
    scripted.on("GET", ADDRESS, ranged(BYTES, cut=700_000), {"body": BYTES})
    client.artifacts.download(SHA256, target)
    assert target.read_bytes() == BYTES


def test_without_an_etag_a_download_starts_anew(scripted, client, target):
    scripted.on("GET", ADDRESS, {"body": BYTES, "cut": 700_000}, {"body": BYTES})
    client.artifacts.download(SHA256, target)
    assert target.read_bytes() == BYTES
    assert all("Range" not in request.headers for request in scripted.requests)


def test_pieces_that_do_not_belong_together_are_fetched_again_whole(scripted, client, target):
    other = os.urandom(len(BYTES))
    scripted.on("GET", ADDRESS, ranged(other, cut=700_000), ranged(BYTES))
    client.artifacts.download(SHA256, target)
    assert target.read_bytes() == BYTES
    assert len(scripted.requests) == 3


def test_other_bytes_are_refused_and_what_was_there_stays(scripted, client, target):
    target.write_text("the last good one")
    scripted.on("GET", ADDRESS, {"body": BYTES[:-1] + b"?"})
    with pytest.raises(onnxpress.DigestMismatchError):
        client.artifacts.download(SHA256, target)
    assert target.read_text() == "the last good one"
    assert alone(target)


def test_a_download_that_never_ends_well_leaves_nothing(scripted, target):
    scripted.on("GET", ADDRESS, ranged(BYTES, cut=1000), {"status": 206, "body": BYTES, "cut": 0, "headers": ETAG})
    with onnxpress.Client(scripted.url, patience=0.5) as client, pytest.raises(onnxpress.UnreachableError):
        client.artifacts.download(SHA256, target)
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(scripted, client, target):
    def interrupt(done, total):
        raise KeyboardInterrupt

    scripted.on("GET", ADDRESS, {"body": BYTES})
    with pytest.raises(KeyboardInterrupt):
        client.artifacts.download(SHA256, target, progress=interrupt)
    assert list(target.parent.iterdir()) == []


def test_a_download_keeps_its_deadline(scripted, client, target):
    scripted.on("GET", ADDRESS, {"silent": True})
    started = time.monotonic()
    with pytest.raises(onnxpress.WaitTimeoutError):
        client.artifacts.download(SHA256, target, timeout=0.3)
    assert time.monotonic() - started < 10


def test_a_folder_that_is_not_there_is_named(client, tmp_path):
    with pytest.raises(onnxpress.UsageError, match="cannot be written"):
        client.artifacts.download(SHA256, tmp_path / "nowhere" / "small.onnx")


def test_an_upload_announces_its_length_and_digest(scripted, client, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(BYTES)
    ready = {"id": "mdl_1", "state": "ready", "sha256": SHA256}
    scripted.on("POST", "/models", {"status": 503, "body": b""}, {"status": 201, "json": ready})
    assert client.models.upload(path).id == "mdl_1"
    first, second = scripted.asked("POST", "/models")
    assert first.body == second.body == BYTES
    digest_header = f"sha-256=:{base64.b64encode(hashlib.sha256(BYTES).digest()).decode()}:"
    assert second.headers["Repr-Digest"] == digest_header
    assert "Transfer-Encoding" not in second.headers
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert "name=net" in second.path


def test_an_upload_waits_until_the_service_has_looked(scripted, client, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(BYTES)
    checking = {"id": "mdl_1", "state": "checking", "sha256": SHA256}
    problem = {"code": "model_invalid", "class": "user", "retryable": False, "message": "not a network"}
    scripted.on("POST", "/models", {"status": 201, "json": checking})
    scripted.on(
        "GET", "/models/mdl_1", {"json": checking}, {"json": {**checking, "state": "rejected", "problem": problem}}
    )
    with pytest.raises(onnxpress.InvalidError, match="not a network"):
        client.models.upload(path)
    assert client.models.upload(path, wait=False).state == "checking"


def test_a_file_that_shrinks_while_it_is_sent_is_refused_here(tmp_path, scripted, client):
    path = tmp_path / "net.onnx"
    path.write_bytes(BYTES)
    hashed = digest(path)
    path.write_bytes(BYTES[:1000])
    with pytest.raises(onnxpress.UsageError, match="changed while it was sent"):
        client.models.upload(hashed)


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_missing_or_empty_is_refused_here(tmp_path, client, content):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(onnxpress.UsageError, match=r"net\.onnx is"):
        client.models.upload(path)
