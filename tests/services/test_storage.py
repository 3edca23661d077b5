"""Bytes are complete or not there, and never change."""

import errno
import hashlib
import os
import random
import time

import obstore
import pytest

from services.errors import CorruptError, DigestMismatchError, NotFoundError, TooLargeError, UnavailableError
from services.storage import Folder, open_store
from settings import Settings

LIMIT = 1 << 24
# More than two parts of a bucket's upload.
LARGE = random.Random(1).randbytes((17 << 20) + 3)


class InFolder:
    """What tests do to a folder behind the service's back."""

    def __init__(self, settings):
        self.root = settings.data_dir / "store"

    def files(self):
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    def overwrite(self, tenant, sha256, content):
        (self.root / "blobs" / tenant / sha256[:2] / sha256).write_bytes(content)


class InBucket:
    """What tests do to a bucket behind the service's back."""

    def __init__(self, settings, server):
        self.spool = settings.data_dir / "store" / "incoming"
        self.server = server
        self.prefix = settings.store_url.partition(f"{server.BUCKET}/")[2]
        # Of other tests, which may have killed who sent them.
        self.others = server.unfinished_uploads()

    def files(self):
        found = {path.name for path in self.spool.iterdir()} | self.server.uploads_left(self.others)
        batches = obstore.list(self.server.store(), self.prefix + "/")
        return found | {told["path"].removeprefix(self.prefix + "/") for batch in batches for told in batch}

    def overwrite(self, tenant, sha256, content):
        obstore.put(self.server.store(), f"{self.prefix}/blobs/{tenant}/{sha256[:2]}/{sha256}", content)


@pytest.fixture(params=["folder", "bucket"])
def settings(request, tmp_path):
    more = request.getfixturevalue("bucket_fields") if request.param == "bucket" else {}
    return Settings(data_dir=tmp_path, **more)


@pytest.fixture
def store(settings):
    return open_store(settings)


@pytest.fixture
def behind(settings, request):
    return InBucket(settings, request.getfixturevalue("s3_server")) if settings.store_url else InFolder(settings)


@pytest.fixture
def large(store):
    return store.put("a", [LARGE], limit=LIMIT * 2).sha256


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "store")


def test_what_goes_in_comes_out(store):
    content = os.urandom(3 << 20)
    stored = store.put("a", [content[:7], content[7:]], limit=LIMIT)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.size == len(content)
    assert b"".join(store.read("a", stored.sha256)) == content
    assert store.exists("a", stored.sha256)
    assert not store.exists("b", stored.sha256)


def test_the_empty_blob(store):
    stored = store.put("a", [], limit=LIMIT)
    assert b"".join(store.read("a", stored.sha256)) == b""


def test_a_flipped_bit_is_never_given_out_as_a_whole(store, behind, tmp_path):
    content = os.urandom((2 << 20) + 5)
    stored = store.put("a", [content], limit=LIMIT)
    damaged = bytearray(content)
    damaged[100] ^= 1
    behind.overwrite("a", stored.sha256, bytes(damaged))
    came = bytearray()
    with pytest.raises(CorruptError):
        came.extend(byte for chunk in store.read("a", stored.sha256) for byte in chunk)
    assert len(came) < len(content)
    with pytest.raises(CorruptError):
        store.materialise("a", stored.sha256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_announced_size_is_refused_before_a_byte_comes(store, behind):
    with pytest.raises(TooLargeError):
        store.writer("a", limit=10, size=11)
    assert behind.files() == set()


def test_over_the_limit_leaves_nothing(store, behind):
    with store.writer("a", limit=10) as writer:
        writer.write(b"123456")
        with pytest.raises(TooLargeError):
            writer.write(b"123456")
    assert behind.files() == set()


@pytest.mark.parametrize("announced", [{"sha256": "0" * 64}, {"size": 4}])
def test_other_bytes_than_announced_leave_nothing(store, behind, announced):
    with store.writer("a", limit=10, **announced) as writer:
        writer.write(b"12345")
        with pytest.raises(DigestMismatchError):
            writer.finish()
    assert behind.files() == set()


def test_a_sender_that_leaves_leaves_nothing(store, behind):
    def chunks():
        yield b"12345"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.put("a", chunks(), limit=10)
    assert behind.files() == set()


def test_nothing_is_visible_before_it_is_placed(store):
    with store.writer("a", limit=10) as writer:
        writer.write(b"12345")
        stored = writer.finish()
        assert not store.exists("a", stored.sha256)
        writer.place()
        assert store.exists("a", stored.sha256)
    assert store.exists("a", stored.sha256)


def test_a_full_disk_leaves_nothing(store, behind):
    with store.writer("a", limit=LIMIT) as writer:
        os.close(writer._file.fileno())
        # The kernel's own full disk.
        full = os.open("/dev/full", os.O_WRONLY)
        assert full == writer._file.fileno()
        with pytest.raises(UnavailableError) as caught:
            writer.write(b"x" * 100)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert behind.files() == set()


def test_leftovers_go_when_they_are_old(store, tmp_path):
    old, young = (tmp_path / "store" / "incoming" / name for name in ("old", "young"))
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert store.clean_incoming() == 1
    assert young.exists()
    assert not old.exists()


def test_a_copy_cannot_change_the_blob(store, tmp_path):
    beats = []
    stored = store.put("a", [b"original"], limit=LIMIT)
    store.materialise("a", stored.sha256, tmp_path / "copy", beat=lambda: beats.append(1))
    (tmp_path / "copy").write_bytes(b"changed!")
    assert b"".join(store.read("a", stored.sha256)) == b"original"
    assert beats


def test_a_copy_is_another_file(folder, tmp_path):
    stored = folder.put("a", [b"original"], limit=LIMIT)
    folder.materialise("a", stored.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_ino != folder.path("a", stored.sha256).stat().st_ino


def test_what_is_missing_is_said_to_be(store, tmp_path):
    for ask in (store.read, store.head, lambda *name: store.read_part(*name, 0, 1)):
        with pytest.raises(NotFoundError):
            b"".join(ask("a", "0" * 64))
    with pytest.raises(NotFoundError):
        store.materialise("a", "0" * 64, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.remove("a", "0" * 64)


def test_a_removed_blob_leaves_nothing_and_its_neighbours_stay(store, behind):
    first, second = store.put("a", [LARGE], limit=LIMIT * 2), store.put("b", [LARGE], limit=LIMIT * 2)
    assert first == second
    listed = {(found.tenant_id, found.sha256) for found in store.blobs()}
    assert listed == {("a", first.sha256), ("b", first.sha256)}
    assert all(abs(found.modified_at - time.time()) < 300 for found in store.blobs())
    store.remove("a", first.sha256)
    assert not store.exists("a", first.sha256)
    assert b"".join(store.read("b", first.sha256)) == LARGE
    store.remove("b", first.sha256)
    assert behind.files() == set()


def test_more_than_a_part_is_visible_only_when_it_is_placed(store, behind):
    with store.writer("a", limit=LIMIT * 2) as writer:
        writer.write(LARGE)
        assert writer.finish() == writer.finish()
        assert not store.exists("a", writer.finish().sha256)
    assert behind.files() == set()
    with store.writer("a", limit=LIMIT * 2) as writer:
        writer.write(LARGE)
        stored = writer.finish()
        writer.place()
        writer.place()
    assert b"".join(store.read("a", stored.sha256)) == LARGE
    assert store.head("a", stored.sha256) == LARGE[:9]


@pytest.mark.parametrize(
    ("first", "length"),
    [(0, 1), (5, 3 << 20), (8 << 20, 1), ((8 << 20) - 1, 2), (7, len(LARGE) - 7), (len(LARGE) - 1, 1)],
)
def test_a_range_is_what_was_asked_for(store, large, first, length):
    assert b"".join(store.read_part("a", large, first, length)) == LARGE[first : first + length]


def test_no_range_of_damaged_bytes_is_given_out(store, behind, large):
    damaged = bytearray(LARGE)
    damaged[(8 << 20) + 100] ^= 1
    behind.overwrite("a", large, bytes(damaged))
    with pytest.raises(CorruptError):
        b"".join(store.read_part("a", large, (8 << 20) + 99, 3))
    with pytest.raises(CorruptError):
        b"".join(store.read_part("a", large, 0, len(LARGE)))


def test_a_blob_that_came_by_other_means_has_ranges_too(store, behind):
    sha256 = hashlib.sha256(LARGE).hexdigest()
    store.put("a", [b"x"], limit=LIMIT)
    if isinstance(behind, InFolder):
        (behind.root / "blobs" / "a" / sha256[:2]).mkdir()
    behind.overwrite("a", sha256, LARGE)
    assert b"".join(store.read_part("a", sha256, 9 << 20, 100)) == LARGE[9 << 20 :][:100]


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "/x", ""])
def test_only_digests_name_blobs(store, name):
    with pytest.raises(NotFoundError):
        store.exists("a", name)


@pytest.mark.parametrize("tenant", ["..", "a/b", ".hidden"])
def test_tenants_stay_in_their_folder(store, tenant):
    with pytest.raises(NotFoundError):
        store.exists(tenant, "0" * 64)


def test_links_are_not_followed(folder, tmp_path):
    stored = folder.put("a", [b"x"], limit=LIMIT)
    path = folder.path("a", stored.sha256)
    path.unlink()
    (tmp_path / "secret").write_bytes(b"x")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        folder.open("a", stored.sha256)
