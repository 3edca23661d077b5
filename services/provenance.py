"""Where a network comes from: its row, its files, what it was made from and the report of the job that made it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

import engine
from models import ArtifactFile, Job, Model, ModelState
from services import artifacts, catalog
from services.errors import ConflictError
from services.storage import Store


@dataclass(frozen=True)
class Provenance:
    """A network that is ready, and what is known of it.

    Attributes:
        files: its own first, then its external data.
        ancestors: rows of what it was made from, the nearest first, with the digests of their files where they still exist.
        report: of the compression that made it.
        report_file: the same as it is stored.
    """

    model: Model
    inspection: "engine.Inspection"
    files: Sequence[ArtifactFile]
    ancestors: Sequence["Parent"]
    job: Job | None
    report: "engine.Report | None"
    report_file: ArtifactFile | None

    @property
    def sha256(self) -> str:
        """Of the network's own file."""
        return self.files[0].sha256

    @property
    def made_at(self) -> datetime:
        """When the network was there: the end of its job, or its upload."""
        finished = self.job.finished_at if self.job is not None else None
        return finished or self.model.created_at


@dataclass(frozen=True)
class Parent:
    """A network that another was made from."""

    model: Model
    sha256: str | None


def provenance(session: Session, store: Store, tenant_id: str, model_id: str) -> Provenance:
    """Gather what is known of a network.

    Raises:
        NotFoundError: there is no such network.
        ConflictError: it is not ready.
    """
    model = artifacts.get_model(session, tenant_id, model_id)
    if model.in_state is not ModelState.READY or model.artifact is None or model.inspection is None:
        raise ConflictError(f"The model is {model.state}; only a ready one can be taken along.", code="model_not_ready")
    found = catalog.lineage(session, tenant_id, model.id)
    job = session.get(Job, model.job_id) if model.job_id is not None else None
    report, file = _report(session, store, tenant_id, job)
    return Provenance(
        model=model,
        inspection=engine.Inspection.model_validate(model.inspection),
        files=own_first(model.artifact.files),
        ancestors=[Parent(each, _digest(each)) for each in found.ancestors],
        job=job,
        report=report,
        report_file=file,
    )


def own_first(files: Sequence[ArtifactFile]) -> list[ArtifactFile]:
    """Give a network's own file, then its external data by name."""
    return sorted(files, key=lambda file: (file.path != artifacts.MODEL_FILE, file.path))


def _digest(model: Model) -> str | None:
    return own_first(model.artifact.files)[0].sha256 if model.artifact is not None else None


def _report(
    session: Session, store: Store, tenant_id: str, job: Job | None
) -> "tuple[engine.Report | None, ArtifactFile | None]":
    if job is None or job.report_digest is None:
        return None, None
    files = {file.path: file for file in artifacts.get_artifact(session, tenant_id, job.report_digest).files}
    file = files.get("report.json")
    if file is None:
        return None, None
    report = engine.read_report(json.loads(b"".join(store.read(tenant_id, file.sha256))))
    return (report, file) if isinstance(report, engine.Report) else (None, None)
