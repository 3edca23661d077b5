"""What is stored: blobs, the manifests that name them, and the networks and datasets that people see."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base
from models.row_sizes import Weighed
from models.states import DatasetState, ModelState


class Blob(Base):
    """One byte string in the store, named by its sha256. A row exists only where the bytes are in place."""

    __tablename__ = "blob"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class Artifact(Base):
    """A manifest (path -> blob), named by the manifest's sha256: a model, a dataset or a report."""

    __tablename__ = "artifact"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]

    files: Mapped[list["ArtifactFile"]] = relationship(
        order_by="ArtifactFile.path", lazy="selectin", cascade="all, delete-orphan", passive_deletes=True
    )


class ArtifactFile(Base):
    """One line of a manifest."""

    __tablename__ = "artifact_file"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "digest"], ["artifact.tenant_id", "artifact.digest"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "sha256"], ["blob.tenant_id", "blob.sha256"]),
        Index(None, "tenant_id", "sha256"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)


class Archive(Base):
    """A zip that was unpacked and is not kept: what to store instead when the same zip is named again."""

    __tablename__ = "archive"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "digest"], ["artifact.tenant_id", "artifact.digest"], ondelete="CASCADE"),
        Index(None, "tenant_id", "digest"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str]


class Prunability(Base):
    """What of an artifact's network could be pruned; neither result nor problem while the unit works on it."""

    __tablename__ = "prunability"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "digest"], ["artifact.tenant_id", "artifact.digest"], ondelete="CASCADE"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    # Of this service: another one may find more.
    version: Mapped[str]
    unit_id: Mapped[str]
    result: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]


class Model(Weighed, Base):
    """A stored network. A job's result is one too: its row exists from submit on, `pending` until the job succeeds."""

    __tablename__ = "model"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "artifact_digest"], ["artifact.tenant_id", "artifact.digest"]),
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "artifact_digest"),
        Index(None, "tenant_id", "alias", unique=True),
        # Sums are read from the index alone, not from the rows.
        Index(None, "tenant_id", "row_bytes"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str]
    # The last of its aliases, for processes of the version before; the table has them all.
    alias: Mapped[str | None]
    tags: Mapped[list[Any]]
    state: Mapped[str]
    artifact_digest: Mapped[str | None]
    inspection: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]
    # Lineage: the network that this one was made from, and the job that made it (no foreign key: job names model too).
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    artifact: Mapped[Artifact | None] = relationship(viewonly=True)
    aliases: Mapped[list["Alias"]] = relationship(viewonly=True, order_by="Alias.moved_at.desc()")
    numbered: Mapped["ModelVersion | None"] = relationship(
        viewonly=True,
        primaryjoin="and_(foreign(Model.tenant_id) == ModelVersion.tenant_id, foreign(Model.name) == ModelVersion.name,"
        " foreign(Model.artifact_digest) == ModelVersion.digest)",
    )

    @property
    def in_state(self) -> ModelState:
        """The state as a value of the closed set."""
        return ModelState(self.state)

    @property
    def version(self) -> int | None:
        """Which version of its name it is, from 1; None before it was ready."""
        return None if self.numbered is None else self.numbered.version


class ModelVersion(Base):
    """A number that bytes have under a name: the same for the same bytes, and never another's, whatever is deleted or renamed."""

    __tablename__ = "model_version"
    __table_args__ = (Index(None, "tenant_id", "name", "digest", unique=True),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    # Of the artifact, which may be gone.
    digest: Mapped[str]
    created_at: Mapped[datetime]


class Alias(Base):
    """A name that one network has at a time, such as `production`; a network may have several."""

    __tablename__ = "alias"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"), index=True)
    moved_at: Mapped[datetime]


class AliasMove(Base):
    """One move of an alias. The network is kept as long as its move is remembered, for that is what one goes back to."""

    __tablename__ = "alias_move"
    __table_args__ = (Index(None, "tenant_id", "alias", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    alias: Mapped[str]
    # None where the alias was taken away.
    model_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    # A step back takes the move before from what later ones can go back to.
    is_rollback: Mapped[bool]
    key_id: Mapped[str | None]
    note: Mapped[str | None]
    created_at: Mapped[datetime]


class Dataset(Weighed, Base):
    """Stored arrays for calibration and evaluation."""

    __tablename__ = "dataset"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "artifact_digest"], ["artifact.tenant_id", "artifact.digest"]),
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "artifact_digest"),
        Index(None, "tenant_id", "row_bytes"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str]
    tags: Mapped[list[Any]]
    state: Mapped[str]
    artifact_digest: Mapped[str | None]
    # As declared with the upload: {"metric": ..., "outputs": {name: {"kind", "weight", "ignore"}}}.
    declaration: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    # The declaration's, for processes of the version before.
    metric: Mapped[str | None]
    inspection: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    artifact: Mapped[Artifact | None] = relationship(viewonly=True)

    @property
    def declared(self) -> dict[str, Any]:
        """What holds of what was declared, to this version or the one before: which metric does, the inspection says."""
        found = {"metric": self.metric, **self.declaration}
        if self.inspection is not None:
            found["metric"] = self.inspection.get("metric")
        return {name: value for name, value in found.items() if value is not None}

    @property
    def in_state(self) -> DatasetState:
        """The state as a value of the closed set."""
        return DatasetState(self.state)
