"""The exit codes, which a pipeline may rely on."""

from enum import IntEnum

from onnxpress.documents import Outcome
from onnxpress.errors import (
    JobFailedError,
    OnnxpressError,
    RequestRefusedError,
    ServiceError,
    UsageError,
    WaitTimeoutError,
)


class ExitCode(IntEnum):
    """What a command's end means. An uncaught exception is 1, so that it can never be taken for a gate."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    GATE_FAILED = 3
    JOB_FAILED = 4
    SERVICE = 5
    TIMEOUT = 6
    INCONCLUSIVE = 7
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[OnnxpressError], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (RequestRefusedError, ExitCode.USAGE),
    (ServiceError, ExitCode.SERVICE),
    (JobFailedError, ExitCode.JOB_FAILED),
    (WaitTimeoutError, ExitCode.TIMEOUT),
)
_BY_OUTCOME: dict[Outcome, ExitCode] = {
    "pass": ExitCode.OK,
    "none": ExitCode.OK,
    "fail": ExitCode.GATE_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
}


def code_of(error: OnnxpressError) -> ExitCode:
    """Give the exit code of an error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.UNEXPECTED)


def code_of_verdict(outcome: Outcome) -> ExitCode:
    """Give the exit code of a job that succeeded."""
    return _BY_OUTCOME[outcome]
