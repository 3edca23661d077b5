"""Networks and datasets: how uploads become rows, how results do, and how what nobody names is removed."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sqlalchemy import ColumnElement, Select, delete, func, or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, defer, joinedload, selectinload

from models import (
    Alias,
    Archive,
    Artifact,
    ArtifactFile,
    Blob,
    Dataset,
    DatasetState,
    Job,
    Model,
    ModelState,
    ModelVersion,
    Trial,
    new_id,
)
from services import db, model_versions
from services.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from services.problems import Problem
from services.storage import Found, Store, Stored
from services.transitions import advance, record

_log = logging.getLogger(__name__)
MODEL_FILE = "model.onnx"
MODEL_ARCHIVE = "archive.zip"
DATASET_FILE = "data.npz"
SAFETENSORS_FILE = "data.safetensors"
# Bytes are removed only while nobody holds this: a backup reads them.
REMOVING = "remove-blobs"
ZIP = b"PK\x03\x04"
# What stands before the name of an alias where a network is named.
ALIASED = "@"

Kind = Literal["model", "dataset", "report"]


class Source(Protocol):
    """Where an artifact's bytes come from: a finished upload, or a blob that the tenant has already."""

    @property
    def tenant_id(self) -> str:
        """Whose bytes these are."""
        ...

    @property
    def head(self) -> bytes:
        """The first of them."""
        ...

    def finish(self) -> Stored:
        """Give digest and size."""
        ...

    def place(self) -> None:
        """Have the bytes under their digest."""
        ...


@dataclass(frozen=True)
class KnownBlob:
    """Bytes that the store has: nothing is sent again."""

    tenant_id: str
    stored: Stored
    head: bytes

    def finish(self) -> Stored:
        """Give digest and size."""
        return self.stored

    def place(self) -> None:
        """Do nothing: whether they are still there is seen under the blob's lock."""


@dataclass(frozen=True)
class KnownArchive:
    """A zip that the store has unpacked: its files are there, the zip itself is not."""

    tenant_id: str
    stored: Stored
    digest: str
    head: bytes = ZIP

    def finish(self) -> Stored:
        """Give digest and size."""
        return self.stored

    def place(self) -> None:
        """Refuse: as a file of its own it would have to be sent again."""
        raise _unknown_blob()


@dataclass(frozen=True)
class NewFile:
    """A file of an artifact to be: its path in the manifest and its bytes."""

    path: str
    writer: Source


def known(session: Session, tenant_id: str, sha256: str) -> Stored:
    """Tell of bytes that need not be sent: stored as they are, or unpacked; raises NotFoundError."""
    found = session.get(Blob, (tenant_id, sha256)) or session.get(Archive, (tenant_id, sha256))
    if found is None:
        raise NotFoundError("There is no such blob.")
    return Stored(sha256, found.size)


def known_blob(session: Session, store: Store, tenant_id: str, sha256: str) -> KnownBlob | KnownArchive:
    """Give bytes that the tenant has stored under their digest; raises InvalidError where there are none."""
    blob = session.get(Blob, (tenant_id, sha256))
    if blob is not None:
        return KnownBlob(tenant_id, Stored(sha256, blob.size), store.head(tenant_id, sha256))
    archive = session.get(Archive, (tenant_id, sha256))
    if archive is None:
        raise _unknown_blob()
    return KnownArchive(tenant_id, Stored(sha256, archive.size), archive.digest)


def _unknown_blob() -> InvalidError:
    wrong = FieldError("/blob", "No bytes with this digest are stored; upload them.")
    return InvalidError("The request names what does not exist.", (wrong,), code="unknown_blob")


def add_model(session: Session, tenant_id: str, writer: Source, *, name: str) -> Model:
    """Store a finished upload as a network in state `checking`; a zip is unpacked when it is inspected."""
    is_archive = writer.head.startswith(ZIP) and not isinstance(writer, KnownArchive)
    if isinstance(writer, KnownArchive):
        artifact = _unpacked_earlier(session, tenant_id, writer)
    else:
        artifact = store_files(
            session, tenant_id, "model", [NewFile(MODEL_ARCHIVE if is_archive else MODEL_FILE, writer)]
        )
    moment = db.now(session)
    made = _made_here(session, tenant_id, artifact.digest)
    model = Model(
        id=new_id("mdl"),
        tenant_id=tenant_id,
        name=name,
        tags=[],
        state=ModelState.CHECKING,
        artifact_digest=artifact.digest,
        parent_id=None if made is None else made.id,
        created_at=moment,
        updated_at=moment,
    )
    session.add(model)
    session.flush()
    record(session, model, "created")
    return model


def _made_here(session: Session, tenant_id: str, digest: str) -> Model | None:
    """Give the result of a job that has the same bytes: what is pushed comes from it, whichever way it went."""
    same = (Model.tenant_id == tenant_id, Model.artifact_digest == digest, Model.job_id.is_not(None))
    asked = select(Model).where(*same, Model.state == ModelState.READY).order_by(Model.id.desc()).limit(1)
    return session.scalars(asked).first()


def add_dataset(
    session: Session,
    tenant_id: str,
    writer: Source,
    *,
    name: str,
    declaration: Mapping[str, Any] | None = None,
) -> Dataset:
    """Store a finished upload as a dataset in state `checking`.

    `declaration` is what their owner says of the data: the `metric` that labels are judged by, and the network's `outputs`.
    """
    declared = dict(declaration or {})
    # Its header's length in eight bytes, then the header, a JSON object.
    path = SAFETENSORS_FILE if writer.head[8:9] == b"{" else DATASET_FILE
    artifact = store_files(session, tenant_id, "dataset", [NewFile(path, writer)])
    moment = db.now(session)
    dataset = Dataset(
        id=new_id("dst"),
        tenant_id=tenant_id,
        name=name,
        tags=[],
        state=DatasetState.CHECKING,
        artifact_digest=artifact.digest,
        declaration=declared,
        metric=declared.get("metric"),
        created_at=moment,
        updated_at=moment,
    )
    session.add(dataset)
    session.flush()
    record(session, dataset, "created")
    return dataset


def get_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """Give the tenant's network by its id, an alias as `@production`, or a version as `net@3`; raises NotFoundError."""
    return _model(session, tenant_id, _models(tenant_id).where(_is(tenant_id, model_id)), model_id)


def get_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Give the tenant's dataset; raises NotFoundError."""
    return _dataset(session, _datasets(tenant_id).where(Dataset.id == dataset_id))


def use_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """Give the network, named as for `get_model`, which cannot change its state before the transaction ends; raises NotFoundError."""
    asked = _models(tenant_id).where(_is(tenant_id, model_id)).with_for_update(read=True, of=Model)
    return _model(session, tenant_id, asked, model_id)


def use_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Give the dataset, which cannot change its state before the transaction ends; raises NotFoundError."""
    return _dataset(
        session, _datasets(tenant_id).where(Dataset.id == dataset_id).with_for_update(read=True, of=Dataset)
    )


def list_models(
    session: Session,
    tenant_id: str,
    *,
    state: ModelState | None = None,
    name: str | None = None,
    version: int | None = None,
    alias: str | None = None,
    tags: Sequence[str] = (),
    limit: int = 50,
    before: str | None = None,
    whole: bool = False,
) -> list[Model]:
    """Give the tenant's networks, the newest first, those before an id and with all the tags; of one name, of one version of it.

    Unless they are wanted `whole`, what they are is not read: of hundreds it is megabytes.
    """
    asked = _models(tenant_id).order_by(Model.id.desc()).limit(limit)
    left_out = () if whole else (defer(Model.inspection),)
    asked = asked.options(
        joinedload(Model.artifact), joinedload(Model.numbered), selectinload(Model.aliases), *left_out
    )
    if state is not None:
        asked = asked.where(Model.state == state)
    if name is not None:
        asked = asked.where(Model.name == name)
    if version is not None:
        asked = asked.where(Model.numbered.has(ModelVersion.version == version))
    if alias is not None:
        asked = asked.where(_is(tenant_id, f"{ALIASED}{alias}"))
    asked = asked.where(*(_has_tag(session, Model.tags, tag) for tag in tags))
    return list(session.scalars(asked if before is None else asked.where(Model.id < before)))


def list_datasets(
    session: Session,
    tenant_id: str,
    *,
    tags: Sequence[str] = (),
    limit: int = 50,
    before: str | None = None,
    whole: bool = False,
) -> list[Dataset]:
    """Give the tenant's datasets, the newest first, those before an id and with all the tags; `whole`: with what they are."""
    left_out = () if whole else (defer(Dataset.inspection),)
    asked = _datasets(tenant_id).order_by(Dataset.id.desc()).limit(limit)
    asked = asked.options(joinedload(Dataset.artifact), *left_out)
    asked = asked.where(*(_has_tag(session, Dataset.tags, tag) for tag in tags))
    return list(session.scalars(asked if before is None else asked.where(Dataset.id < before)))


def _has_tag(session: Session, tags: InstrumentedAttribute[list[Any]], tag: str) -> ColumnElement[bool]:
    each = func.json_array_elements_text(tags) if db.is_postgres(session) else func.json_each(tags)
    one = each.table_valued("value", name="one")
    return select(one.c.value).where(one.c.value == tag).exists()


def _models(tenant_id: str) -> Select[Model]:
    return select(Model).where(Model.tenant_id == tenant_id, Model.state != ModelState.DELETED)


def _is(tenant_id: str, named: str) -> ColumnElement[bool]:
    version = model_versions.split(named)
    if version is not None:
        return Model.id == _newest_of(tenant_id, *version).scalar_subquery()
    if not named.startswith(ALIASED):
        return Model.id == named
    alias = (Alias.tenant_id == tenant_id, Alias.name == named.removeprefix(ALIASED))
    return Model.id.in_(select(Alias.model_id).where(*alias))


def _newest_of(tenant_id: str, name: str, number: int) -> Select[str]:
    """Give the newest network with a version's bytes; under another name where none has this one any more."""
    version = (ModelVersion.tenant_id == tenant_id, ModelVersion.name == name, ModelVersion.version == number)
    digest = select(ModelVersion.digest).where(*version).scalar_subquery()
    one = aliased(Model)
    same = (one.tenant_id == tenant_id, one.artifact_digest == digest, one.state == ModelState.READY)
    return select(one.id).where(*same).order_by((one.name == name).desc(), one.id.desc()).limit(1)


def _no_version(session: Session, tenant_id: str, name: str, number: int) -> NotFoundError:
    last = model_versions.newest(session, tenant_id, name)
    if not last:
        return NotFoundError(f"No model has the name {name}.")
    if number > last:
        return NotFoundError(f"The model {name} has no version {number}; the newest is {last}.")
    return NotFoundError(f"Version {number} of the model {name} has been deleted.")


def _model(session: Session, tenant_id: str, asked: Select[Model], named: str) -> Model:
    found = session.scalars(asked).one_or_none()
    version = model_versions.split(named)
    if found is None and version is not None:
        raise _no_version(session, tenant_id, *version)
    if found is None and named.startswith(ALIASED):
        raise NotFoundError(f"No model has the alias {named.removeprefix(ALIASED)}.")
    if found is None:
        raise NotFoundError("There is no such model.")
    return found


def _datasets(tenant_id: str) -> Select[Dataset]:
    return select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.state != DatasetState.DELETED)


def _dataset(session: Session, asked: Select[Dataset]) -> Dataset:
    found = session.scalars(asked).one_or_none()
    if found is None:
        raise NotFoundError("There is no such dataset.")
    return found


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


def store_files(session: Session, tenant_id: str, kind: Kind, files: Sequence[NewFile]) -> Artifact:
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


def unpacked(session: Session, store: Store, model: Model, files: Sequence[NewFile]) -> None:
    """Have the files that were in a network's archive take its place; the archive is remembered by its digest."""
    archive, model.artifact_digest = model.artifact_digest, store_files(session, model.tenant_id, "model", files).digest
    if model.parent_id is None:
        made = _made_here(session, model.tenant_id, model.artifact_digest)
        model.parent_id = None if made is None or made is model else made.id
    session.flush()
    if archive is None:
        return
    for file in get_artifact(session, model.tenant_id, archive).files:
        row = Archive(tenant_id=model.tenant_id, sha256=file.sha256, size=file.size, digest=model.artifact_digest)
        session.merge(row)
    discard(session, store, model.tenant_id, archive)


def _unpacked_earlier(session: Session, tenant_id: str, archive: KnownArchive) -> Artifact:
    if archive.tenant_id != tenant_id:
        raise UnavailableError("The upload belongs to another tenant.")
    db.lock(session, f"artifact {tenant_id} {archive.digest}")
    # It may have gone in between, and its row with it.
    found = session.get(Artifact, (tenant_id, archive.digest), populate_existing=True)
    if found is None:
        raise _unknown_blob()
    return found


def accept(session: Session, subject: Model | Dataset, inspection: dict[str, Any]) -> None:
    """Make an inspected upload ready."""
    subject.inspection = inspection
    advance(session, subject, ModelState.READY if isinstance(subject, Model) else DatasetState.READY)


def reject(session: Session, store: Store, subject: Model | Dataset, problem: Problem) -> None:
    """Refuse an upload: it stays as a row with its reason, and its bytes go unless another object has the same."""
    subject.problem = problem
    digest, subject.artifact_digest = subject.artifact_digest, None
    advance(session, subject, ModelState.REJECTED if isinstance(subject, Model) else DatasetState.REJECTED)
    session.flush()
    if digest is not None:
        discard(session, store, subject.tenant_id, digest)


def discard(session: Session, store: Store, tenant_id: str, digest: str) -> None:
    """Remove an artifact that no network, dataset, job or trial names, and after the commit the bytes that no artifact names."""
    db.lock(session, f"artifact {tenant_id} {digest}")
    for table in (Model, Dataset):
        named = select(table.id).where(table.tenant_id == tenant_id, table.artifact_digest == digest).limit(1)
        if session.scalars(named).first() is not None:
            return
    reported = select(Job.id).where(Job.tenant_id == tenant_id, Job.report_digest == digest).limit(1)
    of_trial = or_(Trial.artifact_digest == digest, Trial.report_digest == digest)
    tried = select(Trial.number).where(Trial.tenant_id == tenant_id, of_trial).limit(1)
    artifact = session.get(Artifact, (tenant_id, digest))
    if artifact is None or any(session.scalars(named).first() is not None for named in (reported, tried)):
        return
    digests = sorted({file.sha256 for file in artifact.files})
    session.delete(artifact)
    session.flush()
    for sha256 in digests:
        db.lock(session, f"blob {tenant_id} {sha256}")
        used = select(ArtifactFile.path).where(ArtifactFile.tenant_id == tenant_id, ArtifactFile.sha256 == sha256)
        if session.scalars(used.limit(1)).first() is None:
            session.execute(delete(Blob).where(Blob.tenant_id == tenant_id, Blob.sha256 == sha256))
            _remove_after_commit(session, store, tenant_id, sha256)


def _remove_after_commit(session: Session, store: Store, tenant_id: str, sha256: str) -> None:
    database = db.database_of(session)

    def remove() -> None:
        # Where that may not or cannot be now, the bytes stay until `sweep` comes: what was asked for is committed.
        try:
            _remove_unless_named(database, store, tenant_id, sha256)
        except (UnavailableError, OperationalError, OSError) as error:
            _log.warning("blob %s: not removed now: %s", sha256, type(error).__name__)

    db.after_commit(session, remove)


def sweep(database: db.Database, store: Store, *, before: float) -> int:
    """Remove bytes from before a moment (of the epoch) that no row names; gives their number.

    Uploads that died before their commit left them, or removals that had to wait: this one removes nothing either while
    somebody holds `REMOVING`.
    """
    found = strays(database, store, before=before)
    return sum(_remove_unless_named(database, store, blob.tenant_id, blob.sha256) for blob in found)


def strays(database: db.Database, store: Store, *, before: float) -> Iterator[Found]:
    """Give the bytes from before a moment that no row names."""
    for found in store.blobs():
        if found.modified_at < before and not _is_named(database, found.tenant_id, found.sha256):
            yield found


def _is_named(database: db.Database, tenant_id: str, sha256: str) -> bool:
    with database.reading() as session:
        return session.get(Blob, (tenant_id, sha256)) is not None


def _remove_unless_named(database: db.Database, store: Store, tenant_id: str, sha256: str) -> bool:
    # Asked under the lock: the same bytes may have been uploaded since.
    with database.sharing(REMOVING) as free, database.transaction() as session:
        db.lock(session, f"blob {tenant_id} {sha256}")
        if not free or session.get(Blob, (tenant_id, sha256)) is not None:
            return False
        store.remove(tenant_id, sha256)
        return True


def _place_blob(session: Session, tenant_id: str, writer: Source) -> None:
    if writer.tenant_id != tenant_id:
        raise UnavailableError("The upload belongs to another tenant.")
    stored = writer.finish()
    db.lock(session, f"blob {tenant_id} {stored.sha256}")
    # The bytes first: a row is a promise that they are there.
    writer.place()
    if session.get(Blob, (tenant_id, stored.sha256)) is None:
        if isinstance(writer, KnownBlob):
            raise _unknown_blob()
        session.add(Blob(tenant_id=tenant_id, sha256=stored.sha256, size=stored.size, created_at=db.now(session)))
        session.flush()
