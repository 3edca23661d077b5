"""Blobs in an S3 bucket: the same promises as a folder's, over a network that may be away."""

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from services.errors import CorruptError, NotFoundError, TooLargeError, UnavailableError
from services.storage.contract import (
    HEAD,
    Found,
    FoundUpload,
    Stored,
    Writer,
    blob_path,
    clean_folder,
    no_beat,
    store_stream,
    upload_path,
)
from settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Config

_log = logging.getLogger(__name__)
# Bytes of one request: few enough to be sent again after a fault, and to be verified before they are given out.
PART = 8 << 20
# S3 takes 10,000 parts of an upload.
_MAX_PARTS = 9000
_AT_ONCE = 4
_REQUEST_S = 60.0
_DIGEST = hashlib.sha256().digest_size


class Bucket:
    """A blob store in a bucket.

    An upload is spooled to a local file until its digest is known. Bytes beyond one part are sent before the transaction
    that registers them, as a multi-part upload that is completed inside of it: nothing is visible before, and nothing is
    left of what is given up. Beside such a blob lie the digests of its parts, so that a range can be verified without
    reading all of it.
    """

    def __init__(self, store: S3Store, spool: Path) -> None:
        self._store = store
        self._spool = spool
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def from_settings(cls, settings: Settings, *, patience_s: float) -> Self:
        """Open the bucket that the settings name; nothing is sent yet."""
        store = S3Store.from_url(
            settings.store_url,
            config=_config(settings),
            client_options={
                "allow_http": settings.store_endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=min(patience_s, 5.0)),
                "timeout": timedelta(seconds=_REQUEST_S),
                **({"root_certificate": settings.store_ca_file.read_bytes()} if settings.store_ca_file else {}),
            },
            retry_config={
                "max_retries": 20,
                "retry_timeout": timedelta(seconds=patience_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=1),
                    "base": 2,
                },
            },
        )
        return cls(store, settings.data_dir / "store" / "incoming")

    def writer(self, tenant_id: str, *, limit: int, size: int | None = None, sha256: str | None = None) -> Writer:
        """Open an upload; see `Store`."""
        if size is not None and size > limit:
            raise TooLargeError(f"{size} bytes are over the limit of {limit}.")
        return _BucketWriter(
            self, self._spool / secrets.token_hex(16), tenant_id, limit=limit, size=size, sha256=sha256
        )

    def put(self, tenant_id: str, chunks: Iterable[bytes], *, limit: int) -> Stored:
        """Store a whole stream."""
        return store_stream(self.writer(tenant_id, limit=limit), chunks)

    def read(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """Give the blob's bytes, the last of them only if all have the digest; see `Store`."""
        found = hashlib.sha256()
        held = b""
        for part in self._parts(_blob(tenant_id, sha256)):
            if held:
                yield held
            found.update(part)
            held = part
        if found.hexdigest() != sha256:
            raise CorruptError("The stored bytes are damaged.")
        yield held

    def read_part(self, tenant_id: str, sha256: str, first: int, length: int) -> Iterator[bytes]:
        """Give some of the blob's bytes, each part verified before it is given out; see `Store`."""
        key = _blob(tenant_id, sha256)
        size = self._size(key)
        digests = self._digests(tenant_id, sha256, size)
        end = min(first + length, size)
        for index in range(first // PART, -(-end // PART)):
            start = index * PART
            part = self._range(key, start, min(PART, size - start))
            if hashlib.sha256(part).digest() != digests[index]:
                raise CorruptError("The stored bytes are damaged.")
            yield part[max(0, first - start) : end - start]

    def head(self, tenant_id: str, sha256: str) -> bytes:
        """Give the blob's first bytes."""
        key = _blob(tenant_id, sha256)
        size = self._size(key)
        return self._range(key, 0, min(HEAD, size)) if size else b""

    def exists(self, tenant_id: str, sha256: str) -> bool:
        """Tell whether the bytes are in place."""
        key = _blob(tenant_id, sha256)
        try:
            self._size(key)
        except NotFoundError:
            return False
        return True

    def blobs(self) -> Iterator[Found]:
        """List everything that is in place, named by a row or not."""
        with _reaching():
            for batch in obstore.list(self._store, "blobs/"):
                for told in batch:
                    _, tenant_id, _, sha256 = told["path"].split("/")
                    yield Found(tenant_id, sha256, told["last_modified"].timestamp())

    def remove(self, tenant_id: str, sha256: str) -> None:
        """Forget a blob; see `Store`."""
        for key in (_blob(tenant_id, sha256), _part_digests(tenant_id, sha256)):
            try:
                with _reaching():
                    obstore.delete(self._store, key)
            except NotFoundError:
                # Services other than Amazon's may say so.
                continue

    def materialise(self, tenant_id: str, sha256: str, target: Path, *, beat: Callable[[], None] = no_beat) -> None:
        """Put a verified copy of the blob at a new path; see `Store`."""
        try:
            with target.open("xb") as copy:
                for part in self.read(tenant_id, sha256):
                    copy.write(part)
                    beat()
        except (CorruptError, NotFoundError, UnavailableError):
            target.unlink()
            raise

    def part_writer(self, tenant_id: str, upload_id: str, name: str, *, limit: int) -> Writer:
        """Open a piece of a resumable upload; see `Store`."""
        key = f"{_upload(tenant_id, upload_id)}/{name}"
        return _PartWriter(self, key, self._spool / secrets.token_hex(16), tenant_id, limit=limit)

    def read_upload_part(self, tenant_id: str, upload_id: str, name: str) -> Iterator[bytes]:
        """Give a piece's bytes; raises NotFoundError."""
        yield from self._parts(f"{_upload(tenant_id, upload_id)}/{name}")

    def remove_upload_parts(self, tenant_id: str, upload_id: str, name: str | None = None) -> None:
        """Forget all pieces of an upload, or one of them; see `Store`."""
        prefix = _upload(tenant_id, upload_id)
        with _reaching():
            keys = (
                [f"{prefix}/{name}"]
                if name is not None
                else [told["path"] for batch in obstore.list(self._store, f"{prefix}/") for told in batch]
            )
        for key in keys:
            with suppress(NotFoundError), _reaching():
                obstore.delete(self._store, key)

    def uploads(self) -> Iterator[FoundUpload]:
        """List the uploads that have pieces, named by a row or not."""
        found: dict[tuple[str, str], float] = {}
        with _reaching():
            for batch in obstore.list(self._store, "uploads/"):
                for told in batch:
                    _, tenant_id, upload_id, _ = told["path"].split("/")
                    moment = told["last_modified"].timestamp()
                    found[tenant_id, upload_id] = max(moment, found.get((tenant_id, upload_id), 0.0))
        for (tenant_id, upload_id), moment in found.items():
            yield FoundUpload(tenant_id, upload_id, moment)

    def send_part(self, key: str, path: Path) -> None:
        """Have a piece's file under its key, complete or not at all."""
        with _reaching():
            obstore.put(self._store, key, path, max_concurrency=_AT_ONCE)

    def clean_incoming(self, *, older_than_s: float = 86400.0) -> int:
        """Remove what uploads that died left on this machine; gives the number of files.

        Their parts in the bucket go by the bucket's own rule for uploads that were never completed.
        """
        return clean_folder(self._spool, older_than_s)

    def send(self, tenant_id: str, stored: Stored, content: bytes | Iterator[bytes]) -> None:
        """Have bytes under their digest; beyond one part they come as an iterator, and its exception gives all of it up."""
        with _reaching():
            obstore.put(
                self._store,
                _blob(tenant_id, stored.sha256),
                content,
                use_multipart=not isinstance(content, bytes),
                chunk_size=PART * max(1, -(-stored.size // (PART * _MAX_PARTS))),
                max_concurrency=_AT_ONCE,
            )

    def send_digests(self, tenant_id: str, stored: Stored, digests: bytes) -> None:
        """Have the digests of a blob's parts beside it."""
        with _reaching():
            obstore.put(self._store, _part_digests(tenant_id, stored.sha256), digests)

    def _digests(self, tenant_id: str, sha256: str, size: int) -> list[bytes]:
        """Give the digest of each part."""
        if size <= PART:
            return [bytes.fromhex(sha256)]
        try:
            with _reaching():
                told = bytes(obstore.get(self._store, _part_digests(tenant_id, sha256)).bytes())
        except NotFoundError:
            # Copied here by other means: all of it has to be read.
            told = b"".join(hashlib.sha256(part).digest() for part in _verified(self.read(tenant_id, sha256)))
        if len(told) != _DIGEST * -(-size // PART):
            raise CorruptError("The stored bytes are damaged.")
        return [told[at : at + _DIGEST] for at in range(0, len(told), _DIGEST)]

    def _parts(self, key: str) -> Iterator[bytes]:
        size = self._size(key)
        for start in range(0, size, PART):
            yield self._range(key, start, min(PART, size - start))

    def _size(self, key: str) -> int:
        with _reaching():
            return int(obstore.head(self._store, key)["size"])

    def _range(self, key: str, start: int, length: int) -> bytes:
        with _reaching():
            return bytes(obstore.get_range(self._store, key, start=start, length=length))


class _BucketWriter(Writer):
    """An upload whose large bytes are on their way before they are placed."""

    def __init__(
        self, bucket: Bucket, path: Path, tenant_id: str, *, limit: int, size: int | None, sha256: str | None
    ) -> None:
        super().__init__(path, tenant_id, limit=limit, size=size, sha256=sha256)
        self._bucket = bucket
        self._sending: _Sending | None = None

    def finish(self) -> Stored:
        """Compare with what was announced, and send all but the end of a large upload; may be called again after a fault."""
        stored = super().finish()
        if stored.size > PART and self._sending is None and not self._placed:
            sending = _Sending(self._bucket, self.tenant_id, stored, self._path)
            sending.start()
            self._sending = sending
        return stored

    def abort(self) -> None:
        """Give up what came so far; harmless after `place`."""
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.give_up()
        super().abort()

    def _place(self, stored: Stored) -> None:
        if stored.size <= PART:
            self._bucket.send(self.tenant_id, stored, self._path.read_bytes())
        else:
            self.finish()
            sending, self._sending = self._sending, None
            assert sending is not None
            sending.complete()
        self._path.unlink()


class _PartWriter(Writer):
    def __init__(self, bucket: Bucket, key: str, path: Path, tenant_id: str, *, limit: int) -> None:
        super().__init__(path, tenant_id, limit=limit, size=None, sha256=None)
        self._bucket = bucket
        self._key = key

    def _place(self, stored: Stored) -> None:
        del stored
        self._bucket.send_part(self._key, self._path)
        self._path.unlink()


class _GivenUpError(Exception):
    """The upload is not to be completed."""


class _Sending:
    """A multi-part upload in a thread of its own, which sends all parts and then waits to be completed or given up."""

    def __init__(self, bucket: Bucket, tenant_id: str, stored: Stored, path: Path) -> None:
        self._bucket = bucket
        self._tenant_id = tenant_id
        self._stored = stored
        self._path = path
        self._digests = bytearray()
        self._sent = threading.Event()
        self._decided = threading.Event()
        self._given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bucket upload", daemon=True)

    def start(self) -> None:
        """Send the parts; raises UnavailableError."""
        self._thread.start()
        self._sent.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def complete(self) -> None:
        """Make the blob visible; raises UnavailableError."""
        try:
            # Before the blob: whoever sees it finds them.
            self._bucket.send_digests(self._tenant_id, self._stored, bytes(self._digests))
        except UnavailableError:
            self.give_up()
            raise
        self._decided.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Leave nothing in the bucket."""
        self._given_up = True
        self._decided.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._bucket.send(self._tenant_id, self._stored, self._parts())
        except _GivenUpError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again where the upload is waited for
            self._error = error
        finally:
            self._sent.set()

    def _parts(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while part := file.read(PART):
                self._digests += hashlib.sha256(part).digest()
                yield part
        self._sent.set()
        self._decided.wait()
        if self._given_up:
            raise _GivenUpError


def _blob(tenant_id: str, sha256: str) -> str:
    return f"blobs/{blob_path(tenant_id, sha256)}"


def _upload(tenant_id: str, upload_id: str) -> str:
    return f"uploads/{upload_path(tenant_id, upload_id)}"


def _part_digests(tenant_id: str, sha256: str) -> str:
    return f"parts/{blob_path(tenant_id, sha256)}"


def _verified(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut verified chunks at the parts' bounds."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= PART:
            yield bytes(pending[:PART])
            del pending[:PART]
    if pending:
        yield bytes(pending)


def _config(settings: Settings) -> "S3Config":
    found: S3Config = {"region": settings.store_region}
    if settings.store_endpoint:
        found["endpoint"] = settings.store_endpoint
    if settings.store_access_key.get_secret_value():
        # Without them the library looks in the environment and for the machine's role.
        found["access_key_id"] = settings.store_access_key.get_secret_value()
        found["secret_access_key"] = settings.store_secret_key.get_secret_value()
    return found


@contextmanager
def _reaching() -> Iterator[None]:
    """Say in our words what went wrong in the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError("The stored bytes are missing.") from error
    except BaseError as error:
        # The first line tells; the rest is for who debugs the library.
        _log.warning("bucket: %s", str(error).partition("\n")[0])
        raise UnavailableError("The store does not answer now.") from error
