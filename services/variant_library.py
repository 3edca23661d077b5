"""What was measured of a network's variants: stored piece by piece, and read by every later search on the same things."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

import engine
from models import ROW_BYTES, Dataset, Job, LibraryPiece, Model, text_bytes
from services import cache, db
from services.idempotency import digest

# Of a search's spec, what changes how variants are measured; of the space, what says which there are.
_MEASURED_BY = {"target", "outputs"}


def name(session: Session, job: Job, spec: "engine.Search", target_class: str | None) -> str:
    """Name the library that a search reads and adds to: its network, data, class of machines, settings, version."""
    dataset = None if job.dataset_id is None else session.get_one(Dataset, job.dataset_id)
    space = spec.space.model_dump(mode="json", exclude={"train", "flip"})
    return digest(
        {
            "model": network_of(session, job),
            "dataset": None if dataset is None else [dataset.artifact_digest, dataset.declared],
            "target_class": target_class,
            "settings": {**spec.model_dump(mode="json", include=_MEASURED_BY), "space": space},
            # Quality is judged on the outputs that gates name.
            "judged": sorted({gate.output or "" for gate in spec.gates}),
            "version": [engine.LIBRARY_VERSION, cache.version()],
        }
    )


def pieces(session: Session, tenant_id: str, library: str) -> dict[str, Any]:
    """Give the pieces of a library that there are, by part."""
    of_it = (LibraryPiece.tenant_id == tenant_id, LibraryPiece.library == library)
    session.execute(update(LibraryPiece).where(*of_it).values(used_at=db.now(session)))
    found = select(LibraryPiece.part, LibraryPiece.value).where(*of_it).order_by(LibraryPiece.part)
    return {row.part: row.value for row in session.execute(found)}


def keep(session: Session, job: Job, library: str, part: str, value: Mapping[str, Any]) -> None:
    """Store a piece, which counts with the job; where another one has measured it meanwhile, that one's stays."""
    insert = postgresql.insert if db.is_postgres(session) else sqlite.insert
    moment = db.now(session)
    row = insert(LibraryPiece).values(
        tenant_id=job.tenant_id,
        library=library,
        part=part,
        model_digest=network_of(session, job),
        value=dict(value),
        created_at=moment,
        used_at=moment,
    )
    if session.execute(row.on_conflict_do_nothing().returning(LibraryPiece.part)).first() is not None:
        job.add_bytes(ROW_BYTES + text_bytes(dict(value)))


def forget(session: Session, tenant_id: str, model_digest: str) -> None:
    """Remove what is known of a network that the tenant does not have any more."""
    kept = select(Model.id).where(Model.tenant_id == tenant_id, Model.artifact_digest == model_digest).limit(1)
    if session.scalars(kept).first() is None:
        of_it = (LibraryPiece.tenant_id == tenant_id, LibraryPiece.model_digest == model_digest)
        session.execute(delete(LibraryPiece).where(*of_it))


def network_of(session: Session, job: Job) -> str:
    """Give the digest of the network that a job searches over."""
    found = session.get_one(Model, job.model_id).artifact_digest
    assert found is not None, "a job's units wait until its network is there"
    return found
