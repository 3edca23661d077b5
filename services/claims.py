"""What a worker holds and gives back: a claimed unit with all that it needs, the answer of its process, a step back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import engine
from services.artifacts import MODEL_ARCHIVE, NewFile

# Which files a unit's process has left in `out`: none, a network out of an archive, reports, reports with a network, a network.
Leaves = Literal["nothing", "unpacked", "reports", "network", "candidate"]
# As much as one turn of a coordinator may ask for.
MOST_CHILDREN = 1000


@dataclass(frozen=True)
class Input:
    """A stored file that a unit reads, and its path in the workspace."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Order:
    """What the unit's process is to do; the worker adds what only this machine knows."""

    verb: Literal[
        "inspect_model",
        "inspect_archive",
        "inspect_dataset",
        "prunability",
        "run",
        "merge",
        "search",
        "variants",
        "trial",
    ]
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What a unit may take: the wait for a worker and the run in seconds, memory in MiB."""

    pending_s: float
    runtime_s: float
    memory_mb: int

    @classmethod
    def of(cls, spec: "engine.Spec") -> Self:
        """Give what a job's spec lets a unit take."""
        limits = spec.limits
        return cls(limits.max_pending_s, limits.max_runtime_s, limits.max_memory_mb)


@dataclass(frozen=True)
class Asked:
    """What a new unit is made of: its queue, what it may take and what it is asked."""

    queue: str
    limits: Limits
    payload: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A unit that the caller holds until the lease ends, and all that it needs to work."""

    unit_id: str
    tenant_id: str
    kind: str
    token: str
    attempt: int
    job_id: str | None
    order: Order
    inputs: tuple[Input, ...]
    # What is declared of the data in a folder of the workspace.
    declarations: Mapping[str, dict[str, Any]]
    runtime_s: float
    memory_mb: int
    # The largest file that its process may write, in largest networks; 0: notes only.
    largest_file: int = 0
    # Processor time of earlier attempts.
    cpu_s: float = 0.0


class Child(BaseModel):
    """A unit that a running one asks for, of a kind whose entry in the table says what its payload is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    payload: dict[str, Any]
    target_class: Annotated[str, Field(max_length=1000)] | None = None


class StepBack(BaseModel):
    """What a running unit says instead of a result: work for its children, and what it needs to go on after the last.

    Without children it `needs` the network of a trial, and is asked again at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spawn: Annotated[tuple[Child, ...], Field(max_length=MOST_CHILDREN)] = ()
    state: dict[str, Any]
    # Trials whose candidates are not needed any more, by number.
    drop: tuple[int, ...] = ()
    # The trial whose network its next order has.
    needs: int | None = None

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if bool(self.spawn) == (self.needs is not None):
            raise ValueError("a unit steps back either for its children or for a network")
        return self


@dataclass(frozen=True)
class Piece:
    """What was measured of one part of a network's variants."""

    value: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What was measured of a search's candidate, and the passes that make it again, where they are known."""

    values: "engine.TrialValues"
    recipe: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Answer:
    """What a unit's process said, read and checked, and which files go with it."""

    value: "engine.AnyReport | engine.Inspection | engine.DatasetInspection | engine.Prunability | StepBack | Piece | Candidate"
    leaves: Leaves = "nothing"
    # What the network is that it has made.
    inspection: "engine.Inspection | None" = None


@dataclass(frozen=True)
class Result:
    """A unit's answer, with its files stored in `incoming/` but not placed."""

    answer: Answer
    model_files: tuple[NewFile, ...] = ()
    report_files: tuple[NewFile, ...] = ()


def is_archive(inputs: tuple[Input, ...]) -> bool:
    """Tell whether what is to be inspected is a network's archive."""
    return any(item.path == f"model/{MODEL_ARCHIVE}" for item in inputs)
