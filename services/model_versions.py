"""Versions of networks: the bytes under a name have a number, from 1; the same bytes have the same one, for ever."""

import re

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from models import Model, ModelState, ModelVersion
from services import db

_NAMED = re.compile(r"(?s)(.+)@([1-9][0-9]{0,8})")


def split(named: str) -> tuple[str, int] | None:
    """Give name and number of `net@3`; None for what is no version."""
    found = _NAMED.fullmatch(named)
    return None if found is None else (found[1], int(found[2]))


def find(session: Session, tenant_id: str, name: str, version: int) -> ModelVersion | None:
    """Give the version of a name with this number."""
    return session.get(ModelVersion, (tenant_id, name, version))


def newest(session: Session, tenant_id: str, name: str) -> int:
    """Give the last number that the name has given away; 0: none."""
    asked = select(func.max(ModelVersion.version))
    return session.scalars(asked.where(ModelVersion.tenant_id == tenant_id, ModelVersion.name == name)).one() or 0


def number(session: Session, model: Model) -> None:
    """Have a network that is ready be a version of its name: the one that its bytes have already, or the next."""
    if model.artifact_digest is None:
        return
    tenant_id, name = model.tenant_id, model.name
    db.lock(session, f"versions {tenant_id} {name}")
    same = (ModelVersion.tenant_id == tenant_id, ModelVersion.name == name)
    if not session.scalar(select(exists().where(*same, ModelVersion.digest == model.artifact_digest))):
        version = newest(session, tenant_id, name) + 1
        made = {"digest": model.artifact_digest, "created_at": db.now(session)}
        session.add(ModelVersion(tenant_id=tenant_id, name=name, version=version, **made))
    session.flush()
    session.expire(model, ["numbered"])


def number_the_rest(database: db.Database, at_once: int = 100) -> int:
    """Number networks that processes of the version before made or renamed, the oldest first; gives how many there were."""
    is_numbered = exists().where(
        ModelVersion.tenant_id == Model.tenant_id,
        ModelVersion.name == Model.name,
        ModelVersion.digest == Model.artifact_digest,
    )
    left = select(Model.id).where(Model.state == ModelState.READY, Model.artifact_digest.is_not(None), ~is_numbered)
    with database.reading() as session:
        found = list(session.scalars(left.order_by(Model.id).limit(at_once)))
    for model_id in found:
        with database.transaction() as session:
            model = session.get(Model, model_id)
            if model is not None and model.in_state is ModelState.READY:
                number(session, model)
    return len(found)
