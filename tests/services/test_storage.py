"""Bytes are complete or not there, and never change."""

import errno
import hashlib
import os

import pytest

from services.errors import CorruptError, DigestMismatchError, NotFoundError, TooLargeError, UnavailableError
from services.storage import Folder, open_output

LIMIT = 1 << 24


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "store")


def files(tmp_path):
    return [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_what_goes_in_comes_out(folder):
    content = os.urandom(3 << 20)
    stored = folder.put("a", [content[:7], content[7:]], limit=LIMIT)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.size == len(content)
    assert b"".join(folder.read("a", stored.sha256)) == content
    assert folder.exists("a", stored.sha256)
    assert not folder.exists("b", stored.sha256)


def test_the_empty_blob(folder):
    stored = folder.put("a", [], limit=LIMIT)
    assert b"".join(folder.read("a", stored.sha256)) == b""


def test_a_flipped_bit_is_never_given_out_as_a_whole(folder, tmp_path):
    content = os.urandom((2 << 20) + 5)
    stored = folder.put("a", [content], limit=LIMIT)
    path = folder.path("a", stored.sha256)
    damaged = bytearray(content)
    damaged[100] ^= 1
    path.write_bytes(damaged)
    came = bytearray()
    with pytest.raises(CorruptError):
        came.extend(byte for chunk in folder.read("a", stored.sha256) for byte in chunk)
    assert len(came) < len(content)
    with pytest.raises(CorruptError):
        folder.materialise("a", stored.sha256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_announced_size_is_refused_before_a_byte_comes(folder, tmp_path):
    with pytest.raises(TooLargeError):
        folder.writer("a", limit=10, size=11)
    assert files(tmp_path) == []


def test_over_the_limit_leaves_nothing(folder, tmp_path):
    with folder.writer("a", limit=10) as writer:
        writer.write(b"123456")
        with pytest.raises(TooLargeError):
            writer.write(b"123456")
    assert files(tmp_path) == []


@pytest.mark.parametrize("announced", [{"sha256": "0" * 64}, {"size": 4}])
def test_other_bytes_than_announced_leave_nothing(folder, tmp_path, announced):
    with folder.writer("a", limit=10, **announced) as writer:
        writer.write(b"12345")
        with pytest.raises(DigestMismatchError):
            writer.finish()
    assert files(tmp_path) == []


def test_a_sender_that_leaves_leaves_nothing(folder, tmp_path):
    def chunks():
        yield b"12345"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        folder.put("a", chunks(), limit=10)
    assert files(tmp_path) == []


def test_nothing_is_visible_before_it_is_placed(folder):
    with folder.writer("a", limit=10) as writer:
        writer.write(b"12345")
        stored = writer.finish()
        assert not folder.exists("a", stored.sha256)
        writer.place()
        assert folder.exists("a", stored.sha256)
    assert folder.exists("a", stored.sha256)


def test_a_full_disk_leaves_nothing(folder, tmp_path):
    with folder.writer("a", limit=LIMIT) as writer:
        os.close(writer._file.fileno())
        # The kernel's own full disk.
        full = os.open("/dev/full", os.O_WRONLY)
        assert full == writer._file.fileno()
        with pytest.raises(UnavailableError) as caught:
            writer.write(b"x" * 100)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert files(tmp_path) == []


def test_leftovers_go_when_they_are_old(folder, tmp_path):
    old, young = (tmp_path / "store" / "incoming" / name for name in ("old", "young"))
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert folder.clean_incoming() == 1
    assert files(tmp_path) == [young]


def test_a_copy_cannot_change_the_blob(folder, tmp_path):
    beats = []
    stored = folder.put("a", [b"original"], limit=LIMIT)
    folder.materialise("a", stored.sha256, tmp_path / "copy", beat=lambda: beats.append(1))
    assert (tmp_path / "copy").stat().st_ino != folder.path("a", stored.sha256).stat().st_ino
    (tmp_path / "copy").write_bytes(b"changed!")
    assert b"".join(folder.read("a", stored.sha256)) == b"original"
    assert beats


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "/x", ""])
def test_only_digests_name_blobs(folder, name):
    with pytest.raises(NotFoundError):
        folder.path("a", name)


@pytest.mark.parametrize("tenant", ["..", "a/b", ".hidden"])
def test_tenants_stay_in_their_folder(folder, tenant):
    with pytest.raises(NotFoundError):
        folder.path(tenant, "0" * 64)


def test_links_are_not_followed(folder, tmp_path):
    stored = folder.put("a", [b"x"], limit=LIMIT)
    path = folder.path("a", stored.sha256)
    path.unlink()
    (tmp_path / "secret").write_bytes(b"x")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        folder.open("a", stored.sha256)


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe", "folder", "large"])
def test_outputs_must_be_plain_files(tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 20)
    match kind:
        case "symlink":
            (out / "f").symlink_to(secret)
        case "hardlink":
            (out / "f").hardlink_to(secret)
        case "pipe":
            os.mkfifo(out / "f")
        case "folder":
            (out / "f").mkdir()
        case "large":
            (out / "f").write_bytes(b"x" * 20)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with pytest.raises((OSError, ValueError)):
            open_output(descriptor, "f", limit=10)
    finally:
        os.close(descriptor)
