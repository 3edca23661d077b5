"""What a worker holds and gives back: a claimed unit with all that it needs, the answer of its process, a step back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import engine
from services.artifacts import MODEL_ARCHIVE, NewFile

# Which files a unit's process has left in `out`: none, a network out of an archive, reports, reports with a network.
Leaves = Literal["nothing", "unpacked", "reports", "network"]
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

    verb: Literal["inspect_model", "inspect_archive", "inspect_dataset", "prunability", "run", "merge"]
    payload: Mapping[str, Any] = field(default_factory=dict)


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
    """What a running unit says instead of a result: work for its children, and what it needs to go on after the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spawn: Annotated[tuple[Child, ...], Field(min_length=1, max_length=MOST_CHILDREN)]
    state: dict[str, Any]
    # Trials whose candidates are not needed any more, by number.
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a unit's process said, read and checked, and which files go with it."""

    value: "engine.AnyReport | engine.Inspection | engine.DatasetInspection | engine.Prunability | StepBack"
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
