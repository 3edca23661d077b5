"""What is to be done: jobs, their units, what happened to them, and who works."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, ForeignKeyConstraint, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base
from models.row_sizes import Weighed
from models.states import JobStatus, TrialState, UnitStatus

# What a job's first network is called among its outputs.
FIRST_OUTPUT = "model"


class Job(Weighed, Base):
    """What a client asked for and what came of it."""

    __tablename__ = "job"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "id"),
        Index(None, "status"),
        Index(None, "tenant_id", "cache_key"),
        Index(None, "output_model_id", unique=True),
        Index(None, "tenant_id", "row_bytes"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    kind: Mapped[str]
    status: Mapped[str]
    # Grows with every change: the ETag of the job.
    version: Mapped[int] = mapped_column(Integer, default=1)
    spec: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"), index=True)
    # A second dataset that the report's quality is judged on, and nothing else sees.
    judge_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"), index=True)
    # What a profile compares with.
    baseline_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    # What a compression starts from instead of its model, and what a student learns from instead of it.
    student_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    teacher_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    # The first of its outputs, None for a profile: it makes no network.
    output_model_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"))
    key_id: Mapped[str | None]
    # The higher, the sooner among the tenant's own.
    priority: Mapped[int] = mapped_column(Integer, default=0)
    # "miss", "hit" or "refused": whether an earlier job's result was looked for, and which job's it was.
    cache: Mapped[str] = mapped_column(default="miss")
    cached_from: Mapped[str | None]
    # Names the work: digests of network and data, spec, version of this service. None while the network is not made yet.
    cache_key: Mapped[str | None]
    # Names the machine that the result was measured on, as far as figures depend on it.
    measured_on: Mapped[str | None] = mapped_column("target_class")
    # Of all its units together: how many may be queued or running at a time, how long they may take from the first start
    # to the end, how much processor time. None: each unit has limits of its own, the job has none.
    max_units_in_flight: Mapped[int | None] = mapped_column(Integer)
    max_runtime_s: Mapped[float | None] = mapped_column(Float)
    max_cpu_s: Mapped[float | None] = mapped_column(Float)
    # When max_runtime_s is over, known once it has started; a pause puts it off.
    deadline: Mapped[datetime | None]
    # Since when it is paused: what of it runs ends, and nothing more is queued. And how long it was paused before, in all.
    paused_at: Mapped[datetime | None]
    paused_s: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    # The job that this one tries again.
    retry_of: Mapped[str | None]
    warnings: Mapped[list[Any]]
    steps: Mapped[list[Any]]
    # What goes on right now: {"step", "fraction", "message"}.
    progress: Mapped[dict[str, Any] | None]
    verdict: Mapped[str] = mapped_column(default="none")
    # The report's figures that lists show: {"text", "size", "latency_ratio", ...}.
    summary: Mapped[dict[str, Any] | None]
    report_digest: Mapped[str | None]
    problem: Mapped[dict[str, Any] | None]
    # How strongly the process that touched the network was confined.
    isolation: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    outputs: Mapped[list["JobOutput"]] = relationship(order_by="JobOutput.position")

    @property
    def named_outputs(self) -> dict[str, str]:
        """The networks that it makes, by name; of a job that a process of the version before accepted, the first alone."""
        if self.outputs or self.output_model_id is None:
            return {one.name: one.model_id for one in self.outputs}
        return {FIRST_OUTPUT: self.output_model_id}

    @property
    def in_status(self) -> JobStatus:
        """The status as a value of the closed set."""
        return JobStatus(self.status)


class JobOutput(Base):
    """A network that a job makes, and what it is among them."""

    __tablename__ = "job_output"
    # A constraint: the name of an index is that of the column `output_model_id` of jobs.
    __table_args__ = (UniqueConstraint("model_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))


class JobLabel(Base):
    """A label of a job, apart from its row so that jobs are found by it without looking at all of them."""

    __tablename__ = "job_label"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)


class Unit(Base):
    """A claimable piece of work with its own lease, token and counters."""

    __tablename__ = "unit"
    __table_args__ = (
        Index(None, "status", "lease_until"),
        Index(None, "status", "queue", "queued_at"),
        Index(None, "tenant_id", "queue", "started_at"),
        Index(None, "tenant_id", "finished_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    kind: Mapped[str]
    queue: Mapped[str]
    status: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer, default=0)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("unit.id"), index=True)
    # Its place among the children of its parent.
    position: Mapped[int | None] = mapped_column(Integer)
    # What the unit reads; an inspection's subject, a job's input.
    model_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"), index=True)
    # What it is asked for.
    payload: Mapped[dict[str, Any]]
    # What it waits for while it is `waiting`: "children", "job" (that makes its network) or "turn" (of the units in flight).
    waits_for: Mapped[str | None]
    # What it noted when it stepped back for its children, to go on from.
    continuation: Mapped[dict[str, Any] | None]
    # What it leaves to the unit that waits for it.
    result: Mapped[dict[str, Any] | None]
    # Only a worker of this class takes it; None: any worker that listens to its queue.
    target_class: Mapped[str | None]
    max_pending_s: Mapped[float] = mapped_column(Float)
    max_runtime_s: Mapped[float] = mapped_column(Float)
    max_memory_mb: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    # The holder's fencing token: whoever does not know it can change nothing.
    token: Mapped[str | None]
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    renewed_at: Mapped[datetime | None]
    # Two counters: the unit's own crashes, and losses of the infrastructure under it.
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)
    crashed_steps: Mapped[list[Any]]
    current_step: Mapped[int | None] = mapped_column(Integer)
    # Run time of earlier attempts, counted against max_runtime_s.
    spent_s: Mapped[float] = mapped_column(Float, default=0.0)
    # Processor time of all its attempts, measured.
    cpu_s: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    sends: Mapped[int] = mapped_column(Integer, default=0)
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    pending_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    @property
    def in_status(self) -> UnitStatus:
        """The status as a value of the closed set."""
        return UnitStatus(self.status)


class Trial(Weighed, Base):
    """One candidate of a search: a point of the space, and what came of it. A failed trial is a result."""

    __tablename__ = "trial"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "artifact_digest"], ["artifact.tenant_id", "artifact.digest"]),
        ForeignKeyConstraint(["tenant_id", "report_digest"], ["artifact.tenant_id", "artifact.digest"]),
        Index(None, "tenant_id", "artifact_digest"),
        Index(None, "tenant_id", "report_digest"),
        Index(None, "unit_id", unique=True),
        Index(None, "tenant_id", "row_bytes"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    # Counted from 1 in each job.
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    point: Mapped[dict[str, Any]]
    # The whole proposal: the point with how it is made, whose network it goes on from, and who proposed it why.
    proposal: Mapped[dict[str, Any] | None]
    state: Mapped[str]
    unit_id: Mapped[str] = mapped_column(ForeignKey("unit.id"))
    # Size, quality, latency as measured; None until it has succeeded.
    values: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]
    # The candidate's network while it is kept, what it is, and its whole report.
    artifact_digest: Mapped[str | None]
    inspection: Mapped[dict[str, Any] | None]
    report_digest: Mapped[str | None]
    # The passes that make it again, where they are known.
    recipe: Mapped[list[Any] | None]
    # The network under a name of its own, once somebody has picked it.
    model_id: Mapped[str | None] = mapped_column(ForeignKey("model.id"), index=True)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    @property
    def in_state(self) -> TrialState:
        """The state as a value of the closed set."""
        return TrialState(self.state)


class LibraryPiece(Base):
    """A part of what was measured of a network's variants, kept for later searches on the same network, data and machines."""

    __tablename__ = "library_piece"
    __table_args__ = (Index(None, "used_at"), Index(None, "tenant_id", "model_digest"))

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    # Names network, data, class of machines, version and settings together.
    library: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
    # The network that was measured.
    model_digest: Mapped[str]
    value: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    # When a search read it last.
    used_at: Mapped[datetime]


class Event(Base):
    """Something that happened to a job, a model or a dataset (the subject), in order."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "subject_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    subject_id: Mapped[str]
    unit_id: Mapped[str | None]
    attempt: Mapped[int | None] = mapped_column(Integer)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Idempotency(Base):
    """The answer to a creating request, kept so that the same request again gives the same answer."""

    __tablename__ = "idempotency"
    __table_args__ = (Index(None, "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    # None while the first request is in flight.
    subject_id: Mapped[str | None]
    created_at: Mapped[datetime]


class Worker(Base):
    """A worker process with a sign of life and what it can do."""

    __tablename__ = "worker"
    __table_args__ = (Index(None, "seen_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    queues: Mapped[list[Any]]
    concurrency: Mapped[int] = mapped_column(Integer)
    # "live", "draining" (it takes no more units) or "gone".
    state: Mapped[str] = mapped_column(default="live", server_default="live")
    cores: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    # Providers that it has proven and takes jobs for; and those that it has not, each with the reason.
    targets: Mapped[list[Any]]
    unavailable: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    # What it is to units that need a certain machine: see services.routing.
    target_classes: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    isolation: Mapped[str]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class Chore(Base):
    """What is cleaned up now and then, by one process at a time."""

    __tablename__ = "chore"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at: Mapped[datetime]
    # How many things it has removed in all.
    removed: Mapped[int] = mapped_column(BigInteger, default=0)
