"""The tables and their states. They know no web, no queue and no engine."""

from models.artifacts import Artifact, ArtifactFile, Blob, Dataset, Model
from models.base import Base, UtcDateTime, new_id
from models.jobs import Event, Idempotency, Job, JobLabel, Unit, Worker
from models.states import TRANSITIONS, DatasetState, JobStatus, ModelState, UnitStatus, following, is_final, sources
from models.tenants import ApiKey, Tenant

__all__ = [
    "TRANSITIONS",
    "ApiKey",
    "Artifact",
    "ArtifactFile",
    "Base",
    "Blob",
    "Dataset",
    "DatasetState",
    "Event",
    "Idempotency",
    "Job",
    "JobLabel",
    "JobStatus",
    "Model",
    "ModelState",
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
