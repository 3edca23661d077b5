"""The tables and their states. They know no web, no queue and no engine."""

from models.artifacts import Archive, Artifact, ArtifactFile, Blob, Dataset, Model, Prunability
from models.base import Base, UtcDateTime, new_id
from models.jobs import Chore, Event, Idempotency, Job, JobLabel, Unit, Worker
from models.states import TRANSITIONS, DatasetState, JobStatus, ModelState, UnitStatus, following, is_final, sources
from models.tenants import ApiKey, Audit, Tenant

__all__ = [
    "TRANSITIONS",
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
    "JobStatus",
    "Model",
    "ModelState",
    "Prunability",
    "Tenant",
    "Unit",
    "UnitStatus",
    "UtcDateTime",
    "Worker",
    "following",
    "is_final",
    "new_id",
    "sources",
]
