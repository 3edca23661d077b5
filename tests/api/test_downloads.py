"""Downloads: whole, verified, attached."""

import base64
import hashlib
import io
import os
import zipfile

import httpx
import pytest

from api import downloads
from services.artifacts import NewFile, store_files
from services.storage import open_store

RAW = {"Content-Type": "application/octet-stream"}


def uploaded(client, content, name="net"):
    return client.post("/v1/models", params={"name": name}, content=content, headers=RAW).json()


@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_the_same_bytes_come_back(client, size):
    content = os.urandom(size)
    model = uploaded(client, content)
    digest = hashlib.sha256(content).digest()
    for path in (
        f"/v1/models/{model['id']}/content",
        f"/v1/artifacts/{model['artifact']}",
        f"/v1/artifacts/{model['sha256']}",
    ):
        answer = client.get(path)
        assert answer.content == content
        assert answer.headers["Content-Length"] == str(size)
        assert answer.headers["ETag"] == f'"{digest.hex()}"'
        assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
        assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert client.get(path, headers={"If-None-Match": f'W/"x", "{digest.hex()}"'}).status_code == 304


def test_names_are_safe_in_a_header(client):
    model = uploaded(client, b"named", name='né"t; x\\/../小')
    value = client.get(f"/v1/models/{model['id']}/content").headers["Content-Disposition"]
    assert value.startswith("attachment; filename=\"ne_t_ x__.._.onnx\"; filename*=UTF-8''n%C3%A9%22t%3B")
    assert client.post("/v1/models", params={"name": "a\r\nb"}, content=b"x", headers=RAW).status_code == 422


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_damaged_bytes_never_arrive_whole(service, client, size):
    content = os.urandom(size)
    model = uploaded(client, content)
    path = open_store(service.settings).path("alpha", model["sha256"])
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        answer = client.get(f"/v1/models/{model['id']}/content")
    except httpx.RemoteProtocolError:
        assert size > 1 << 20, "what fits into one block fails before anything is sent"
    else:
        assert (answer.status_code, answer.json()["code"]) == (500, "corrupt")
        assert size < 1 << 20


def stored(service, contents):
    """Store several files as one artifact and give its digest."""
    store = open_store(service.settings)
    files = []
    for name, content in contents.items():
        writer = store.writer("alpha", limit=1 << 30)
        writer.write(content)
        writer.finish()
        files.append(NewFile(name, writer))
    with service.database.transaction() as session:
        return store_files(session, "alpha", "model", files).digest


CONTENTS = {"model.onnx": os.urandom(1000), "weights.bin": os.urandom((2 << 20) + 5), "empty": b"", "größe": b"x"}


@pytest.mark.parametrize("limit", [None, 1500])
def test_several_files_are_one_zip_that_is_always_the_same(service, client, monkeypatch, limit):
    contents = dict(CONTENTS)
    if limit:
        # As if the files were larger than the usual fields of a zip can say.
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit - 1)
        monkeypatch.setattr(downloads, "_ZIP64_FROM", limit)
    digest = stored(service, contents)
    first = client.get(f"/v1/artifacts/{digest}")
    assert first.headers["Content-Type"] == "application/zip"
    assert first.headers["Content-Length"] == str(len(first.content))
    assert "Repr-Digest" not in first.headers
    assert first.headers["ETag"] == f'"{digest}"'
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert client.get(f"/v1/artifacts/{digest}").content == first.content


@pytest.mark.parametrize("first", [0, 1, 1030, 1040, 1100, 1_000_000, 2_098_300, 2_098_500])
def test_a_zip_is_taken_up_where_it_broke(service, client, first):
    digest = stored(service, CONTENTS)
    whole = client.get(f"/v1/artifacts/{digest}")
    headers = {"Range": f"bytes={first}-", "If-Range": whole.headers["ETag"]}
    rest = client.get(f"/v1/artifacts/{digest}", headers=headers)
    assert (rest.status_code, rest.content) == (206, whole.content[first:])
    size = len(whole.content)
    assert rest.headers["Content-Range"] == f"bytes {first}-{size - 1}/{size}"
    some = client.get(f"/v1/artifacts/{digest}", headers={"Range": f"bytes={first}-{first + 99}"})
    assert (some.status_code, some.content) == (206, whole.content[first : first + 100])
    assert client.get(f"/v1/artifacts/{digest}", headers={"Range": f"bytes={size}-"}).status_code == 416


def test_no_part_of_a_damaged_zip(service, client):
    contents = {"a": os.urandom(3 << 20), "b": os.urandom(100)}
    digest = stored(service, contents)
    sha256 = hashlib.sha256(contents["b"]).hexdigest()
    open_store(service.settings).path("alpha", sha256).write_bytes(contents["b"][:-1] + b"x")
    answer = client.get(f"/v1/artifacts/{digest}", headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.json()["code"]) == (500, "corrupt")


def test_a_digest_is_sent_as_it_is_wanted(service, client, large):
    digest, (_, model) = stored(service, CONTENTS), large

    def told(sha256, want):
        return client.get(f"/v1/artifacts/{sha256}", headers={"Want-Repr-Digest": want}).headers.get("Repr-Digest")

    whole = client.get(f"/v1/artifacts/{digest}").content
    of_zip = f"sha-256=:{base64.b64encode(hashlib.sha256(whole).digest()).decode()}:"
    of_file = f"sha-256=:{base64.b64encode(bytes.fromhex(model['sha256'])).decode()}:"
    for want, in_zip, in_file in (
        ("sha-256=1", of_zip, of_file),
        ("sha-512=3, sha-256=10", of_zip, of_file),
        ("sha-512=3", None, of_file),
        ("sha-256=0", None, None),
        ("no such thing", None, of_file),
    ):
        assert (told(digest, want), told(model["sha256"], want)) == (in_zip, in_file), want


def test_a_digest_that_nobody_stored(client):
    assert client.get(f"/v1/artifacts/{'0' * 64}").status_code == 404


RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=10-19", 10, 20),
    ("bytes=4000000-", 4_000_000, 4_200_000),
    ("bytes=-5", 4_199_995, 4_200_000),
    ("bytes=-9999999", 0, 4_200_000),
    ("bytes=4199999-9999999", 4_199_999, 4_200_000),
]


@pytest.fixture(scope="module")
def large(service):
    content = os.urandom(4_200_000)
    with service.client() as client:
        return content, uploaded(client, content)


@pytest.mark.parametrize(("asked", "start", "stop"), RANGES)
def test_a_part_of_the_bytes(client, large, asked, start, stop):
    content, model = large
    answer = client.get(f"/v1/artifacts/{model['sha256']}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == content[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(content)}"
    assert answer.headers["Content-Length"] == str(stop - start)
    # Of the whole: what the client will have in the end.
    assert answer.headers["ETag"] == f'"{model["sha256"]}"'


@pytest.mark.parametrize("asked", ["bytes=4200000-", "bytes=9999999-", "bytes=-0"])
def test_a_part_that_is_not_there(client, large, asked):
    answer = client.get(f"/v1/artifacts/{large[1]['sha256']}", headers={"Range": asked})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == "bytes */4200000"


@pytest.mark.parametrize("asked", ["bytes=5-1", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=a-b"])
def test_what_is_no_single_range_gives_all(client, large, asked):
    answer = client.get(f"/v1/artifacts/{large[1]['sha256']}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, large[0])
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_a_part_is_only_good_for_who_has_the_same(client, large):
    _, model = large
    for condition, status in ((f'"{model["sha256"]}"', 206), ('"other"', 200), (f'W/"{model["sha256"]}"', 200)):
        headers = {"Range": "bytes=1-", "If-Range": condition}
        assert client.get(f"/v1/models/{model['id']}/content", headers=headers).status_code == status


def test_no_part_of_damaged_bytes(service, client):
    content = os.urandom(3 << 20)
    model = uploaded(client, content)
    open_store(service.settings).path("alpha", model["sha256"]).write_bytes(content[:-1] + b"x")
    answer = client.get(f"/v1/artifacts/{model['sha256']}", headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.json()["code"]) == (500, "corrupt")
