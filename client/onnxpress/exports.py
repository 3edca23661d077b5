"""Networks to take along: how to load them, their card and bill of materials, and signed folders for hubs and servers."""

import tempfile
import zipfile
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from onnxpress.deadline import Deadline
from onnxpress.errors import UnexpectedAnswerError, UsageError
from onnxpress.file_transfer import Progress, download
from onnxpress.model_names import in_address
from onnxpress.transport import ApiRequest, Transport

Layout = Literal["hub", "triton"]
LAYOUTS: tuple[Layout, ...] = ("hub", "triton")


class Exports:
    """What goes with stored networks when they leave the service."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def loading(self, model_id: str) -> dict[str, Any]:
        """Say what loads a network as it was measured: provider, session options, ONNX Runtime needed, Python (`usage`).

        Raises ConflictError for one that no job has made.
        """
        return self._transport.json(ApiRequest("GET", f"/models/{in_address(self._transport, model_id)}/loading"))

    def card(self, model_id: str) -> str:
        """Give a network's model card as Markdown."""
        return self._transport.fetch(
            ApiRequest("GET", f"/models/{in_address(self._transport, model_id)}/card", headers={"Accept": "*/*"})
        ).text

    def bill_of_materials(self, model_id: str) -> dict[str, Any]:
        """Give a network's bill of materials (CycloneDX 1.6): digests, ancestors, recipe, measured figures."""
        return self._transport.json(
            ApiRequest("GET", f"/models/{in_address(self._transport, model_id)}/bom", headers={"Accept": "*/*"})
        )

    def signing_key(self) -> bytes:
        """Give the public key, in PEM, that this service signs with; raises ConflictError where it cannot sign."""
        return self._transport.fetch(ApiRequest("GET", "/signing-key", headers={"Accept": "*/*"})).content

    def folder(
        self,
        model_id: str,
        folder: str | PathLike[str],
        *,
        layout: Layout = "hub",
        original: bool = False,
        max_batch: int = 0,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Path:
        """Fetch a network as a folder that others read, every file checked; `folder` must be new or empty.

        `original` puts the original beside it (hub); `max_batch` has Triton gather requests into batches.
        """
        target, deadline = Path(folder), Deadline.after(timeout)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} is not an empty folder; name one that is new")
        query = f"layout={layout}&original={str(original).lower()}&max_batch={max_batch}"
        source = f"/models/{in_address(self._transport, model_id)}/export?{query}"
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as scratch:
            packed = Path(scratch) / "export.zip"
            digest = self._digest(source, deadline)
            download(self._transport, source, digest, packed, several=True, progress=progress, deadline=deadline)
            _unpack(packed, target)
        return target

    def _digest(self, source: str, deadline: Deadline) -> str:
        """Ask for the digest of the folder's manifest, by which its files are checked."""
        request = ApiRequest("GET", source, headers={"Accept": "*/*", "Range": "bytes=0-0"})
        with self._transport.open(request, deadline) as answer:
            return str(answer.headers.get("ETag", "")).strip('"')


def _unpack(packed: Path, target: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename)
            if path.is_absolute() or ".." in path.parts:
                raise UnexpectedAnswerError(f"the service sent a file whose path leaves the folder: {entry.filename!r}")
        try:
            archive.extractall(target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {error.strerror}") from error
