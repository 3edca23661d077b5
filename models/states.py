"""The states that rows may be in and the one table of how they change."""

from enum import StrEnum
from typing import TypeVar


class ModelState(StrEnum):
    """Of a stored network: `pending` until the job that makes it has ended, `checking` until it is inspected.

    A `deleted` one has no bytes; its row stays for the jobs and the lineage that name it.
    """

    PENDING = "pending"
    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    DELETED = "deleted"


class DatasetState(StrEnum):
    """Of a stored dataset; a `deleted` one is a row without bytes."""

    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    DELETED = "deleted"


class JobStatus(StrEnum):
    """Of a job; `cancelling` while its process is being stopped."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrialState(StrEnum):
    """Of a candidate of a search."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UnitStatus(StrEnum):
    """Of a claimable piece of work; `waiting` for its children, for another job or for its turn."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


State = ModelState | DatasetState | JobStatus | TrialState | UnitStatus
StateT = TypeVar("StateT", ModelState, DatasetState, JobStatus, TrialState, UnitStatus)

# By class first: members of two of these enumerations with the same word are equal, and would be one key.
TRANSITIONS: dict[type[State], dict[State, frozenset[State]]] = {
    ModelState: {
        ModelState.PENDING: frozenset({ModelState.READY, ModelState.REJECTED}),
        ModelState.CHECKING: frozenset({ModelState.READY, ModelState.REJECTED}),
        ModelState.READY: frozenset({ModelState.DELETED}),
        ModelState.REJECTED: frozenset({ModelState.DELETED}),
        ModelState.DELETED: frozenset(),
    },
    DatasetState: {
        DatasetState.CHECKING: frozenset({DatasetState.READY, DatasetState.REJECTED}),
        DatasetState.READY: frozenset({DatasetState.DELETED}),
        DatasetState.REJECTED: frozenset({DatasetState.DELETED}),
        DatasetState.DELETED: frozenset(),
    },
    JobStatus: {
        # Succeeded at once where an earlier job's result answers.
        JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
        # Back to queued when the worker was lost: nothing of the job runs then.
        JobStatus.RUNNING: frozenset(
            {JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
        ),
        JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
        JobStatus.SUCCEEDED: frozenset(),
        JobStatus.FAILED: frozenset(),
        JobStatus.CANCELLED: frozenset(),
    },
    TrialState: {
        TrialState.QUEUED: frozenset({TrialState.RUNNING, TrialState.FAILED, TrialState.CANCELLED}),
        # Back to queued when the worker was lost.
        TrialState.RUNNING: frozenset(
            {TrialState.QUEUED, TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED}
        ),
        TrialState.SUCCEEDED: frozenset(),
        TrialState.FAILED: frozenset(),
        TrialState.CANCELLED: frozenset(),
    },
    UnitStatus: {
        UnitStatus.WAITING: frozenset({UnitStatus.QUEUED, UnitStatus.FAILED, UnitStatus.CANCELLED}),
        # Back to waiting when its job is paused.
        UnitStatus.QUEUED: frozenset({UnitStatus.RUNNING, UnitStatus.WAITING, UnitStatus.FAILED, UnitStatus.CANCELLED}),
        UnitStatus.RUNNING: frozenset(
            {UnitStatus.QUEUED, UnitStatus.WAITING, UnitStatus.SUCCEEDED, UnitStatus.FAILED, UnitStatus.CANCELLED}
        ),
        UnitStatus.SUCCEEDED: frozenset(),
        UnitStatus.FAILED: frozenset(),
        UnitStatus.CANCELLED: frozenset(),
    },
}


def following(state: State) -> frozenset[State]:
    """Give the states that may come after this one."""
    return TRANSITIONS[type(state)][state]


def is_final(state: State) -> bool:
    """Tell whether nothing follows this state."""
    return not following(state)


def sources(state: StateT) -> tuple[StateT, ...]:
    """Give the states that may change to this one, for the WHERE of a conditional update."""
    return tuple(before for before in type(state) if state in following(before))
