"""Networks and datasets: how uploads become rows, how results do, and how what nobody names is removed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, joinedload

from models import Artifact, ArtifactFile, Blob, Dataset, DatasetState, Model, ModelState, Unit, UnitStatus, new_id
from services import db
from services.errors import NotFoundError, UnavailableError
from services.history import advance, record
from services.problems import Problem
from services.storage import Folder, Writer

INSPECT_QUEUE = "inspect"
INSPECT_RUNTIME_S = 30.0
INSPECT_MEMORY_MB = 2048
INSPECT_PENDING_S = 3600.0
MODEL_FILE = "model.onnx"
DATASET_FILE = "data.npz"

Kind = Literal["model", "dataset", "report"]


@dataclass(frozen=True)
class NewFile:
    """A file of an artifact to be: its path in the manifest and its finished upload."""

    path: str
    writer: Writer


def register_model(session: Session, tenant_id: str, writer: Writer, *, name: str) -> Model:
    """Store a finished upload as a network in state `checking`, and queue its inspection."""
    artifact = store(session, tenant_id, "model", [NewFile(MODEL_FILE, writer)])
    moment = db.now(session)
    model = Model(
        id=new_id("mdl"),
        tenant_id=tenant_id,
        name=name,
        tags=[],
        state=ModelState.CHECKING,
        artifact_digest=artifact.digest,
        created_at=moment,
        updated_at=moment,
    )
    session.add(model)
    session.flush()
    record(session, model, "created")
    _queue_inspection(session, model, {})
    return model


def register_dataset(
    session: Session, tenant_id: str, writer: Writer, *, name: str, metric: str | None = None, fits: str | None = None
) -> Dataset:
    """Store a finished upload as a dataset in state `checking`, and queue its inspection.

    `fits` is the id of a ready network whose inputs the arrays have to fit; else the data are rejected.
    """
    artifact = store(session, tenant_id, "dataset", [NewFile(DATASET_FILE, writer)])
    moment = db.now(session)
    dataset = Dataset(
        id=new_id("dst"),
        tenant_id=tenant_id,
        name=name,
        tags=[],
        state=DatasetState.CHECKING,
        artifact_digest=artifact.digest,
        metric=metric,
        created_at=moment,
        updated_at=moment,
    )
    session.add(dataset)
    session.flush()
    record(session, dataset, "created")
    _queue_inspection(session, dataset, {} if fits is None else {"fits": fits})
    return dataset


def get_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """Give the tenant's network; raises NotFoundError."""
    found = session.scalars(select(Model).where(Model.tenant_id == tenant_id, Model.id == model_id)).one_or_none()
    if found is None:
        raise NotFoundError("There is no such model.")
    return found


def get_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Give the tenant's dataset; raises NotFoundError."""
    found = session.scalars(
        select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id)
    ).one_or_none()
    if found is None:
        raise NotFoundError("There is no such dataset.")
    return found


def list_models(session: Session, tenant_id: str, *, limit: int = 50, before: str | None = None) -> list[Model]:
    """Give the tenant's networks, the newest first, those before an id."""
    asked = select(Model).where(Model.tenant_id == tenant_id).order_by(Model.id.desc()).limit(limit)
    asked = asked.options(joinedload(Model.artifact))
    return list(session.scalars(asked if before is None else asked.where(Model.id < before)))


def list_datasets(session: Session, tenant_id: str, *, limit: int = 50, before: str | None = None) -> list[Dataset]:
    """Give the tenant's datasets, the newest first, those before an id."""
    asked = select(Dataset).where(Dataset.tenant_id == tenant_id).order_by(Dataset.id.desc()).limit(limit)
    asked = asked.options(joinedload(Dataset.artifact))
    return list(session.scalars(asked if before is None else asked.where(Dataset.id < before)))


def get_artifact(session: Session, tenant_id: str, digest: str) -> Artifact:
    """Give the tenant's artifact with its files; raises NotFoundError."""
    found = session.get(Artifact, (tenant_id, digest))
    if found is None:
        raise NotFoundError("There is no such artifact.")
    return found


def get_blob(session: Session, tenant_id: str, sha256: str) -> Blob:
    """Give the tenant's blob; raises NotFoundError."""
    found = session.get(Blob, (tenant_id, sha256))
    if found is None:
        raise NotFoundError("There is no such blob.")
    return found


def store(session: Session, tenant_id: str, kind: Kind, files: Sequence[NewFile]) -> Artifact:
    """Make finished uploads visible as one artifact; the same content gives the same artifact."""
    lines = [{"path": file.path, **file.writer.finish().__dict__} for file in sorted(files, key=lambda file: file.path)]
    digest = manifest_digest(lines)
    # In one order everywhere (artifact, then blobs by digest), or two transactions could wait for each other.
    db.lock(session, f"artifact {tenant_id} {digest}")
    for file in sorted(files, key=lambda file: file.writer.finish().sha256):
        _place_blob(session, tenant_id, file.writer)
    artifact = session.get(Artifact, (tenant_id, digest))
    if artifact is not None:
        return artifact
    artifact = Artifact(
        tenant_id=tenant_id,
        digest=digest,
        kind=kind,
        size=sum(line["size"] for line in lines),
        created_at=db.now(session),
        files=[ArtifactFile(**line) for line in lines],
    )
    session.add(artifact)
    session.flush()
    return artifact


def manifest_digest(lines: list[dict[str, Any]]) -> str:
    """Give the sha256 of a manifest: its lines sorted by path, as JSON without spaces."""
    text = json.dumps(sorted(lines, key=lambda line: str(line["path"])), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def accept(session: Session, subject: Model | Dataset, inspection: dict[str, Any]) -> None:
    """Make an inspected upload ready."""
    subject.inspection = inspection
    advance(session, subject, ModelState.READY if isinstance(subject, Model) else DatasetState.READY)


def reject(session: Session, folder: Folder, subject: Model | Dataset, problem: Problem) -> None:
    """Refuse an upload: it stays as a row with its reason, and its bytes go unless another object has the same."""
    subject.problem = problem
    digest, subject.artifact_digest = subject.artifact_digest, None
    advance(session, subject, ModelState.REJECTED if isinstance(subject, Model) else DatasetState.REJECTED)
    session.flush()
    if digest is not None:
        discard(session, folder, subject.tenant_id, digest)


def discard(session: Session, folder: Folder, tenant_id: str, digest: str) -> None:
    """Remove an artifact that no network and no dataset names, and after the commit the bytes that no artifact names."""
    db.lock(session, f"artifact {tenant_id} {digest}")
    for table in (Model, Dataset):
        named = select(table.id).where(table.tenant_id == tenant_id, table.artifact_digest == digest).limit(1)
        if session.scalars(named).first() is not None:
            return
    artifact = session.get(Artifact, (tenant_id, digest))
    if artifact is None:
        return
    digests = sorted({file.sha256 for file in artifact.files})
    session.delete(artifact)
    session.flush()
    for sha256 in digests:
        db.lock(session, f"blob {tenant_id} {sha256}")
        used = select(ArtifactFile.path).where(ArtifactFile.tenant_id == tenant_id, ArtifactFile.sha256 == sha256)
        if session.scalars(used.limit(1)).first() is None:
            session.execute(delete(Blob).where(Blob.tenant_id == tenant_id, Blob.sha256 == sha256))
            _remove_after_commit(session, folder, tenant_id, sha256)


def _remove_after_commit(session: Session, folder: Folder, tenant_id: str, sha256: str) -> None:
    database = db.database_of(session)

    def remove() -> None:
        # Again under the lock: the same bytes may have been uploaded since.
        with database.transaction() as later:
            db.lock(later, f"blob {tenant_id} {sha256}")
            if later.get(Blob, (tenant_id, sha256)) is None:
                folder.remove(tenant_id, sha256)

    db.after_commit(session, remove)


def _place_blob(session: Session, tenant_id: str, writer: Writer) -> None:
    if writer.tenant_id != tenant_id:
        raise UnavailableError("The upload belongs to another tenant.")
    stored = writer.finish()
    db.lock(session, f"blob {tenant_id} {stored.sha256}")
    # The bytes first: a row is a promise that they are there.
    writer.place()
    if session.get(Blob, (tenant_id, stored.sha256)) is None:
        session.add(Blob(tenant_id=tenant_id, sha256=stored.sha256, size=stored.size, created_at=db.now(session)))
        session.flush()


def _queue_inspection(session: Session, subject: Model | Dataset, payload: dict[str, Any]) -> Unit:
    moment = db.now(session)
    is_model = isinstance(subject, Model)
    unit = Unit(
        id=new_id("unt"),
        tenant_id=subject.tenant_id,
        kind="inspect_model" if is_model else "inspect_dataset",
        queue=INSPECT_QUEUE,
        status=UnitStatus.QUEUED,
        model_id=subject.id if is_model else None,
        dataset_id=None if is_model else subject.id,
        payload=payload,
        max_pending_s=INSPECT_PENDING_S,
        max_runtime_s=INSPECT_RUNTIME_S,
        max_memory_mb=INSPECT_MEMORY_MB,
        crashed_steps=[],
        created_at=moment,
        queued_at=moment,
        pending_until=moment + timedelta(seconds=INSPECT_PENDING_S),
        sent_at=moment,
    )
    session.add(unit)
    session.flush()
    db.enqueue(session, unit.queue, unit.id)
    return unit
