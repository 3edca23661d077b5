"""What a backup holds."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from services.errors import BackupError

FORMAT = 1
FILE = "manifest.json"

Kind = Literal["sqlite", "postgresql"]


@dataclass(frozen=True)
class BlobName:
    """A byte string of the store, as the copied database names it."""

    tenant_id: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Damage:
    """A blob that the database names and the store could not give."""

    tenant_id: str
    sha256: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The list of a backup's content; it is written last, so that what has none is no backup."""

    created_at: str
    version: str
    revision: str
    kind: Kind
    # The database's copy: its name in the backup, and its digest.
    database: str
    database_sha256: str
    blobs: tuple[BlobName, ...]
    damaged: tuple[Damage, ...]

    @property
    def size(self) -> int:
        """The size of all blobs."""
        return sum(blob.size for blob in self.blobs)

    def to_json(self) -> str:
        """Give the manifest's file."""
        blobs = [[blob.tenant_id, blob.sha256, blob.size] for blob in self.blobs]
        return json.dumps({"format": FORMAT, **asdict(self), "blobs": blobs}, indent=1) + "\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read a manifest's file; raises BackupError where it is none, or one of a later version."""
        try:
            read: dict[str, Any] = json.loads(content)
            found = read.pop("format")
            blobs = tuple(BlobName(*line) for line in read.pop("blobs"))
            damaged = tuple(Damage(**line) for line in read.pop("damaged"))
            made = cls(**read, blobs=blobs, damaged=damaged)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(f"The backup's manifest cannot be read: {error}.") from error
        if found != FORMAT:
            raise BackupError(f"The backup has the format {found}; this version reads {FORMAT}.")
        return made
