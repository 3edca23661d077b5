"""What the service says of models, datasets and jobs. Each keeps the whole JSON in `document`, for fields yet unknown here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from onnxpress.problem import Problem

JobStatus = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Outcome = Literal["pass", "fail", "inconclusive", "none"]
FINAL = frozenset({"succeeded", "failed", "cancelled"})
Json = Mapping[str, Any]


def _problem(document: Any) -> Problem | None:
    return Problem.from_document(document) if isinstance(document, Mapping) else None


@dataclass(frozen=True)
class Stored:
    """What models and datasets have in common: `checking` until inspected, then `ready` or `rejected`."""

    id: str
    state: str
    name: str | None
    sha256: str | None
    size: int | None
    inspection: Json | None
    problem: Problem | None
    tags: tuple[str, ...]
    # Digest of the manifest: what names several files.
    artifact: str | None
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            state=str(document["state"]),
            name=document.get("name"),
            tags=tuple(map(str, document.get("tags") or ())),
            artifact=document.get("artifact"),
            sha256=document.get("sha256"),
            size=document.get("size_bytes"),
            inspection=document.get("inspection"),
            problem=_problem(document.get("problem")),
            document=document,
        )


@dataclass(frozen=True)
class Model(Stored):
    """A stored network, uploaded or the result of a job."""

    @property
    def version(self) -> int | None:
        """Which one of its name it is, from 1; None before it is ready."""
        return self.document.get("version")


@dataclass(frozen=True)
class Dataset(Stored):
    """Stored arrays for calibration and evaluation."""

    @property
    def preprocessing(self) -> Json | None:
        """What was done to raw data before, as the file says it: `kind`, `summary`, `parameters`, `classes`."""
        return (self.inspection or {}).get("preprocessing")


@dataclass(frozen=True)
class PrunableGroup:
    """Channels that are alternatives to each other; `members` are the weights' axes that lose their part together."""

    name: str
    kind: str
    channels: int
    members: tuple[Json, ...]


@dataclass(frozen=True)
class FrozenNode:
    """A node that keeps channels, and why."""

    node: str
    op: str
    reason: str
    channels: int


@dataclass(frozen=True)
class Prunability:
    """What of a network could be pruned; shares are from 0 to 1, the largest groups come first."""

    prunable_parameters: float
    prunable_macs: float
    parameters: int
    macs: int
    groups: tuple[PrunableGroup, ...]
    frozen: tuple[FrozenNode, ...]
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            prunable_parameters=float(document["prunable_parameters"]),
            prunable_macs=float(document["prunable_macs"]),
            parameters=int(document["parameters"]),
            macs=int(document["macs"]),
            groups=tuple(
                PrunableGroup(str(one["name"]), str(one["kind"]), int(one["channels"]), tuple(one["members"]))
                for one in document["groups"]
            ),
            frozen=tuple(
                FrozenNode(str(one["node"]), str(one["op"]), str(one["reason"]), int(one["channels"]))
                for one in document["frozen"]
            ),
            document=document,
        )


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `id` is where a stream can be taken up again."""

    id: int
    type: str
    data: Json


@dataclass(frozen=True)
class Key:
    """An API key. `text` is there only once, in the answer that made it."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    text: str | None = field(default=None, repr=False)
    document: Json = field(default_factory=dict, repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            name=str(document.get("name") or ""),
            scopes=tuple(map(str, document.get("scopes") or ())),
            created_at=document.get("created_at"),
            expires_at=document.get("expires_at"),
            revoked_at=document.get("revoked_at"),
            text=document.get("key"),
            document=document,
        )


@dataclass(frozen=True)
class Change:
    """Something that was made or changed: by which key, by which operation of the API, when, and what."""

    key: str
    action: str
    subject: str | None
    at: str
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            key=str(document["key"]),
            action=str(document["action"]),
            subject=document.get("subject"),
            at=str(document["at"]),
            document=document,
        )


@dataclass(frozen=True)
class Step:
    """One pass of a job's recipe and where it stands."""

    index: int
    type: str
    status: str
    reason: str | None
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, index: int, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            index=int(document.get("index", index)),
            type=str(document.get("type", "")),
            status=str(document.get("status", "waiting")),
            reason=document.get("reason"),
            document=document,
        )


@dataclass(frozen=True)
class JobProgress:
    """What a running job does right now; `fraction` is of the step."""

    step: int | None
    fraction: float | None
    message: str | None

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        what = document.get("what")
        return cls(
            step=document.get("step"),
            fraction=document.get("fraction"),
            message=document.get("message") or (f"measuring {what}" if what else None),
        )


@dataclass(frozen=True)
class PlaceInQueue:
    """Where a queued job stands: how much goes before it, and in how many seconds it may begin; None: nobody knows."""

    ahead: int
    begins_in_s: float | None
    # How many the workers that are there take at a time; 0: nobody is there to take it.
    slots: int

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(int(document["ahead"]), document.get("begins_in_s"), int(document.get("slots", 1)))


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was asked for. `verdict` is about its gates, `status` about the work."""

    id: str
    kind: str
    status: JobStatus
    verdict: Outcome
    steps: tuple[Step, ...]
    progress: JobProgress | None
    problem: Problem | None
    output_model: str | None
    warnings: tuple[str, ...]
    labels: Mapping[str, str]
    # "hit" where an earlier job's result answered.
    cache: str
    created_at: str | None
    # Since when a search rests.
    paused_at: str | None
    # While it is queued, as lists and looks at it tell; None in answers that change it.
    queue: PlaceInQueue | None
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            kind=str(document.get("kind", "compress")),
            status=document["status"],
            verdict=document.get("verdict") or "none",
            steps=tuple(Step.from_document(index, one) for index, one in enumerate(document.get("steps") or ())),
            progress=JobProgress.from_document(document["progress"]) if document.get("progress") else None,
            problem=_problem(document.get("problem")),
            output_model=document.get("output_model"),
            warnings=tuple(map(str, document.get("warnings") or ())),
            labels=document.get("labels") or {},
            cache=str(document.get("cache") or "miss"),
            created_at=document.get("created_at"),
            paused_at=document.get("paused_at"),
            queue=PlaceInQueue.from_document(document["queue"]) if document.get("queue") else None,
            document=document,
        )

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL

    @property
    def succeeded(self) -> bool:
        """Whether it ended with a result, whatever its gates say of that."""
        return self.status == "succeeded"


@dataclass(frozen=True)
class Webhook:
    """An address that events are sent to; `secret` is there once, after it was made or given a new one."""

    id: str
    url: str
    events: tuple[str, ...]
    enabled: bool
    disabled_by: str | None
    secret: str | None
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            url=str(document["url"]),
            events=tuple(map(str, document.get("events") or ())),
            enabled=bool(document.get("enabled", True)),
            disabled_by=document.get("disabled_by"),
            secret=document.get("secret"),
            # Whoever prints the document does not mean the secret.
            document={name: value for name, value in document.items() if name != "secret"},
        )


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook: `pending` until it has arrived or was given up."""

    id: str
    type: str
    status: Literal["pending", "delivered", "failed"]
    subject: str | None
    attempts: tuple[Json, ...]
    created_at: str
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            id=str(document["id"]),
            type=str(document["type"]),
            status=document["status"],
            subject=document.get("subject"),
            attempts=tuple(document.get("attempts") or ()),
            created_at=str(document["created_at"]),
            document=document,
        )

    @property
    def result(self) -> str:
        """What came of the last attempt, such as `delivered` or `refused 500`; empty before the first."""
        if not self.attempts:
            return ""
        last = self.attempts[-1]
        status = "" if last.get("status") is None else f" {last['status']}"
        return f"{last['result']}{status}"
