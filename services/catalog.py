"""Networks and datasets as their owners keep them: named, tagged, found by an alias, traced, deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session, defer, joinedload

from models import Dataset, DatasetState, Job, JobStatus, Model, ModelState, is_final
from services import aliases, artifacts, model_versions, variant_library
from services.errors import ConflictError
from services.storage import Store
from services.transitions import advance, record

# A chain of jobs is as long as somebody makes it; what is shown of it is not.
LINEAGE_LIMIT = 200

# Of hundreds of networks, what they are is megabytes.
_BRIEF = (joinedload(Model.artifact), defer(Model.inspection))

Kept = TypeVar("Kept", Model, Dataset)

_ACTIVE = tuple(status for status in JobStatus if not is_final(status))


@dataclass(frozen=True)
class Changes:
    """What is to change; None leaves a thing as it is, an empty alias takes all aliases away."""

    name: str | None = None
    tags: Sequence[str] | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Lineage:
    """Where a network comes from, the nearest first, and what was made from it, by generation."""

    model: Model
    ancestors: list[Model]
    descendants: list[Model]
    complete: bool


def update_model(
    session: Session, tenant_id: str, model_id: str, changes: Changes, *, key_id: str | None = None
) -> Model:
    """Rename or tag a network, or move an alias to it: an alias names one network, and the last to get it has it."""
    model = artifacts.get_model(session, tenant_id, model_id)
    mover = aliases.Mover(key_id)
    if changes.alias:
        aliases.move(session, tenant_id, changes.alias, model.id, mover=mover)
    elif changes.alias is not None:
        aliases.take_all(session, model, mover=mover)
    changed = _described(session, model, changes)
    if changes.name is not None and changed.in_state is ModelState.READY:
        model_versions.number(session, changed)
    return changed


def update_dataset(session: Session, tenant_id: str, dataset_id: str, changes: Changes) -> Dataset:
    """Rename or tag a dataset."""
    return _described(session, artifacts.get_dataset(session, tenant_id, dataset_id), changes)


def delete_model(session: Session, store: Store, tenant_id: str, model_id: str) -> None:
    """Remove a network, and its bytes where nothing else names them; its row stays for what names it.

    Raises ConflictError while it is being made or checked, and while a job needs it.
    """
    model = artifacts.get_model(session, tenant_id, model_id)
    session.refresh(model, with_for_update=True)
    if model.in_state in {ModelState.PENDING, ModelState.CHECKING}:
        raise ConflictError(f"The model is {model.state}; it can be deleted after that.", code="model_in_use")
    named = (Job.model_id, Job.baseline_id, Job.student_id, Job.teacher_id)
    _refuse_if_needed(session, or_(*(column == model.id for column in named)), "model")
    aliases.take_all(session, model)
    # What lineages show of it.
    model.inspection = model.inspection and {"size_bytes": model.inspection.get("size_bytes")}
    digest, model.artifact_digest = model.artifact_digest, None
    advance(session, model, ModelState.DELETED)
    _release(session, store, tenant_id, digest)
    if digest is not None:
        variant_library.forget(session, tenant_id, digest)


def delete_dataset(session: Session, store: Store, tenant_id: str, dataset_id: str) -> None:
    """Remove a dataset, as `delete_model` does a network."""
    dataset = artifacts.get_dataset(session, tenant_id, dataset_id)
    session.refresh(dataset, with_for_update=True)
    if dataset.in_state is DatasetState.CHECKING:
        raise ConflictError("The dataset is checking; it can be deleted after that.", code="dataset_in_use")
    _refuse_if_needed(session, or_(Job.dataset_id == dataset.id, Job.judge_id == dataset.id), "dataset")
    dataset.inspection = None
    digest, dataset.artifact_digest = dataset.artifact_digest, None
    advance(session, dataset, DatasetState.DELETED)
    _release(session, store, tenant_id, digest)


def lineage(session: Session, tenant_id: str, model_id: str) -> Lineage:
    """Trace a network back to the upload that it came from, and on to all that was made from it."""
    model = artifacts.get_model(session, tenant_id, model_id)
    ancestors: list[Model] = []
    parent = model.parent_id
    while parent is not None and len(ancestors) < LINEAGE_LIMIT:
        row = session.get_one(Model, parent, options=_BRIEF)
        ancestors.append(row)
        parent = row.parent_id
    descendants: list[Model] = []
    generation = [model.id]
    while generation and len(descendants) < LINEAGE_LIMIT:
        asked = select(Model).where(Model.tenant_id == tenant_id, Model.parent_id.in_(generation)).order_by(Model.id)
        children = list(session.scalars(asked.options(*_BRIEF).limit(LINEAGE_LIMIT - len(descendants))))
        descendants += children
        generation = [child.id for child in children]
    return Lineage(model, ancestors, descendants, parent is None and not generation)


def _described(session: Session, row: Kept, changes: Changes) -> Kept:
    if changes.name is not None:
        row.name = changes.name
    if changes.tags is not None:
        row.tags = list(dict.fromkeys(changes.tags))
    record(session, row, "changed")
    return row


def _refuse_if_needed(session: Session, names_it: ColumnElement[bool], what: str) -> None:
    needed = session.scalars(select(Job.id).where(names_it, Job.status.in_(_ACTIVE)).limit(1)).first()
    if needed is not None:
        raise ConflictError(f"The job {needed} needs the {what}.", code=f"{what}_in_use", hint="Cancel the job first.")


def _release(session: Session, store: Store, tenant_id: str, digest: str | None) -> None:
    session.flush()
    if digest is not None:
        artifacts.discard(session, store, tenant_id, digest)
