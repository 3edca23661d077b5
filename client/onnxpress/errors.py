"""What can go wrong between a caller and the service, each with the problem details that the service sent.

The tree says whose turn it is: `RequestRefusedError` (the request has to change), `ServiceError` (the service or the way
to it is at fault; later may be fine), `JobFailedError` and `WaitTimeoutError` (the request was fine, the job was not).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from onnxpress.documents import Job


@dataclass(frozen=True)
class Fault:
    """One place in a request that is wrong: a JSON pointer into the body or a parameter's name, and a sentence."""

    where: str
    detail: str


@dataclass(frozen=True)
class Problem:
    """RFC 9457 problem details, or the same made from an answer that is none."""

    title: str
    status: int | None = None
    code: str = "unknown"
    detail: str | None = None
    errors: tuple[Fault, ...] = ()
    retryable: bool = False
    request_id: str | None = None
    node: str | None = None
    step: int | None = None
    hint: str | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, status: int | None = None) -> Self:
        """Read the problem details of an answer, or the problem that a job's or model's row carries."""
        faults = [one for one in document.get("errors") or () if isinstance(one, Mapping)]
        return cls(
            title=str(document.get("title") or document.get("message") or document.get("code") or "Problem"),
            status=status if status is not None else document.get("status"),
            code=str(document.get("code") or "unknown"),
            detail=document.get("detail") or document.get("message"),
            errors=tuple(
                Fault(str(one.get("pointer") or one.get("parameter") or "/"), str(one.get("detail") or ""))
                for one in faults
            ),
            retryable=bool(document.get("retryable")),
            request_id=document.get("request_id"),
            node=document.get("node"),
            step=document.get("step"),
            hint=document.get("hint"),
            document=document,
        )

    def __str__(self) -> str:
        lines = [self.detail or self.title]
        lines += [f"  {fault.where}: {fault.detail}" for fault in self.errors]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def to_document(self) -> dict[str, Any]:
        """Give the problem as JSON: what the service sent, or the least that a program needs."""
        if self.document:
            return dict(self.document)
        found = {"title": self.title, "status": self.status, "code": self.code, "detail": self.detail}
        return {key: value for key, value in found.items() if value is not None}


class OnnxpressError(Exception):
    """The common base of everything that this package raises on purpose."""

    code = "onnxpress"

    def __init__(self, problem: Problem | str) -> None:
        self.problem = problem if isinstance(problem, Problem) else Problem(problem, code=self.code)
        super().__init__(str(self.problem))


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

    def __init__(self, job: "Job") -> None:
        super().__init__(job.problem or Problem(f"job {job.id} was {job.status}", code=f"job_{job.status}"))
        self.job = job


class WaitTimeoutError(OnnxpressError):
    """The deadline passed; a submitted job goes on in the service and can be waited for again."""

    code = "timeout"

    def __init__(self, message: str, job: "Job | None" = None) -> None:
        super().__init__(message)
        self.job = job


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
