"""Large files on their way in: sent in pieces (tus 1.0), gone on with where they broke off, also by another process."""

import base64
from collections.abc import Iterator

import httpx

from onnxpress.deadline import Deadline
from onnxpress.errors import ConflictError, NotFoundError, UnavailableError, UnreachableError
from onnxpress.file_transfer import Digested, Progress
from onnxpress.pages import items
from onnxpress.transport import ApiRequest, Backoff, Transport

# Of one request: a proxy's limit is rarely smaller, and no more of it is lost with a process of the service.
PIECE = 64 << 20
_TUS = {"Tus-Resumable": "1.0.0"}
_BROKEN = (UnreachableError, UnavailableError, httpx.TransportError)


class ResumableUpload:
    """The sending of one file."""

    def __init__(self, transport: Transport, file: Digested, progress: Progress | None, deadline: Deadline) -> None:
        self._transport = transport
        self._file = file
        self._progress = progress
        self._deadline = deadline

    def send(self) -> str | None:
        """Send what the service has not yet, and give the upload's id; None where the service knows no such uploads."""
        found = self._begun()
        if found is None:
            return None
        upload_id, offset = found
        backoff = self._backoff()
        while offset < self._file.size:
            before, reason = offset, "the upload broke"
            try:
                offset = self._piece(upload_id, offset)
                continue
            except ConflictError:
                # Another process sends the same file, or an answer was lost.
                reason = "the upload is elsewhere"
            except _BROKEN:
                self._deadline.left(1)
            offset = self._offset(upload_id)
            if offset > before:
                backoff = self._backoff()
            elif not backoff.pause(f"{reason} after {offset} bytes"):
                raise UnreachableError(
                    f"the service at {self._transport.url} takes no more of {self._file.path} than {offset} bytes"
                )
        return upload_id

    def _backoff(self) -> Backoff:
        return Backoff(self._transport.patience, self._deadline, self._transport.on_retry)

    def _begun(self) -> tuple[str, int] | None:
        """Give an upload of these bytes that somebody began, or begin one."""
        try:
            asked = ApiRequest("GET", "/uploads", query={"sha256": self._file.sha256})
            for one in items(self._transport.json(asked, self._deadline)):
                if one["length"] == self._file.size:
                    return str(one["id"]), int(one["offset"])
        except NotFoundError:
            return None
        told = {"filename": self._file.path.name, "sha256": self._file.sha256}
        metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in told.items())
        headers = {**_TUS, "Upload-Length": str(self._file.size), "Upload-Metadata": metadata}
        answer = self._transport.fetch(ApiRequest("POST", "/uploads", headers=headers), self._deadline)
        return answer.headers["Location"].rpartition("/")[2], 0

    def _piece(self, upload_id: str, offset: int) -> int:
        size = min(PIECE, self._file.size - offset)
        request = ApiRequest(
            "PATCH",
            f"/uploads/{upload_id}",
            stream=lambda: self._bytes(offset, size),
            headers={
                **_TUS,
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(size),
            },
        )
        return int(self._transport.fetch(request, self._deadline).headers["Upload-Offset"])

    def _offset(self, upload_id: str) -> int:
        answer = self._transport.fetch(ApiRequest("HEAD", f"/uploads/{upload_id}", headers=_TUS), self._deadline)
        return int(answer.headers["Upload-Offset"])

    def _bytes(self, offset: int, size: int) -> Iterator[bytes]:
        for piece in self._file.stream(None, self._deadline, first=offset, length=size):
            yield piece
            offset += len(piece)
            if self._progress:
                self._progress(offset, self._file.size)
