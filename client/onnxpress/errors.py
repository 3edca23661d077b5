"""What can go wrong between a caller and the service, each with the problem details that the service sent.

The tree says whose turn it is: `RequestRefusedError` (the request has to change), `ServiceError` (the service or the way
to it is at fault; later may be fine), `JobFailedError` and `WaitTimeoutError` (the request was fine, the job was not).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from onnxpress.documents import Job
from onnxpress.problem import Problem


class OnnxpressError(Exception):
    """The common base of everything that this package raises on purpose."""

    code = "onnxpress"
    # The job that was waited for, and is there without its asker.
    job_id: str | None = None

    def __init__(self, problem: Problem | str) -> None:
        self.problem = problem if isinstance(problem, Problem) else Problem(problem, code=self.code)
        super().__init__(str(self.problem))


class PlaintextWarning(UserWarning):
    """The key goes over the network in the clear."""


class UsageError(OnnxpressError):
    """Something is wrong before the service was asked: an option, a recipe file, the configuration."""

    code = "usage"


class RequestRefusedError(OnnxpressError):
    """The service refused the request (4xx); the same request will be refused again."""

    code = "request_refused"


class AuthenticationError(RequestRefusedError):
    """The API key is missing, unknown, expired or lacks the scope (401, 403)."""


class NotFoundError(RequestRefusedError):
    """No such object, or not this tenant's (404)."""


class ConflictError(RequestRefusedError):
    """The object's state does not allow it (409)."""


class InvalidError(RequestRefusedError):
    """The body is refused (400, 413, 415, 422): `problem.errors` names the places. Also a rejected model or dataset."""


class ServiceError(OnnxpressError):
    """The service, or the way to it, is at fault."""

    code = "service_error"


class UnreachableError(ServiceError):
    """No connection, or it broke, as often as it was worth trying."""

    code = "unreachable"


class UnavailableError(ServiceError):
    """The service answered 5xx or 429 as often as it was worth trying."""


class UnexpectedAnswerError(ServiceError):
    """The answer is not one that the service's contract knows; is the URL right?"""

    code = "unexpected_answer"


class DigestMismatchError(ServiceError):
    """Downloaded bytes are not the ones that were asked for; nothing was written."""

    code = "digest_mismatch"


class JobFailedError(OnnxpressError):
    """The job ended as failed or cancelled; `job.problem` says why."""

    code = "job_failed"

    def __init__(self, job: Job) -> None:
        super().__init__(job.problem or Problem(f"job {job.id} was {job.status}", code=f"job_{job.status}"))
        self.job = job


class WaitTimeoutError(OnnxpressError):
    """The deadline passed; a submitted job goes on in the service and can be waited for again."""

    code = "timeout"

    def __init__(self, message: str, job: Job | None = None) -> None:
        super().__init__(message)
        self.job = job


@contextmanager
def about_job(job_id: str) -> Iterator[None]:
    """Have errors name the job that is there all the same: those of the way to the service, and of too little patience."""
    try:
        yield
    except (ServiceError, WaitTimeoutError) as error:
        error.job_id = job_id
        raise


_BY_STATUS: dict[int, type[OnnxpressError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    400: InvalidError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: UnavailableError,
}


def error_for(problem: Problem) -> OnnxpressError:
    """Give the error that belongs to a problem's HTTP status."""
    status = problem.status or 0
    fallback = RequestRefusedError if 400 <= status < 500 else UnavailableError
    return _BY_STATUS.get(status, fallback)(problem)
