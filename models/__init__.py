"""The tables and their states. They know no web, no queue and no engine."""

from models.artifacts import Alias, AliasMove, Archive, Artifact, ArtifactFile, Blob, Dataset, Model, Prunability
from models.base import Base, UtcDateTime, new_id
from models.jobs import (
    FIRST_OUTPUT,
    Chore,
    Event,
    Idempotency,
    Job,
    JobLabel,
    JobOutput,
    LibraryPiece,
    Trial,
    Unit,
    Worker,
)
from models.row_sizes import DELIVERY_BYTES, EVENT_BYTES, ROW_BYTES, text_bytes
from models.states import (
    TRANSITIONS,
    DatasetState,
    JobStatus,
    ModelState,
    TrialState,
    UnitStatus,
    following,
    is_final,
    sources,
)
from models.tenants import ApiKey, Audit, Tenant
from models.uploads import Upload, UploadPart
from models.webhooks import Webhook, WebhookDelivery

__all__ = [
    "DELIVERY_BYTES",
    "EVENT_BYTES",
    "FIRST_OUTPUT",
    "ROW_BYTES",
    "TRANSITIONS",
    "Alias",
    "AliasMove",
    "ApiKey",
    "Archive",
    "Artifact",
    "ArtifactFile",
    "Audit",
    "Base",
    "Blob",
    "Chore",
    "Dataset",
    "DatasetState",
    "Event",
    "Idempotency",
    "Job",
    "JobLabel",
    "JobOutput",
    "JobStatus",
    "LibraryPiece",
    "Model",
    "ModelState",
    "Prunability",
    "Tenant",
    "Trial",
    "TrialState",
    "Unit",
    "UnitStatus",
    "Upload",
    "UploadPart",
    "UtcDateTime",
    "Webhook",
    "WebhookDelivery",
    "Worker",
    "following",
    "is_final",
    "new_id",
    "sources",
    "text_bytes",
]
