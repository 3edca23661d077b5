"""Why a use case refuses, in words and codes that the edges may show as they are."""

from dataclasses import dataclass
from typing import Any, ClassVar


class ServiceError(Exception):
    """A refusal with a stable code."""

    code: ClassVar[str] = "service_error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        # Where a more exact code of the closed set is known it takes the class's place.
        self.exact_code = code or self.code


class NotFoundError(ServiceError):
    """There is no such object, or it is another tenant's, which must look the same."""

    code = "not_found"


class GoneError(ServiceError):
    """It was there, and its time is over."""

    code = "gone"


class ConflictError(ServiceError):
    """The object's state does not allow this now."""

    code = "conflict"


class RejectedError(ServiceError):
    """The request is well formed, but its content cannot be accepted; carries the engine's problem where there is one."""

    code = "rejected"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str | None = None, problem: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.problem = problem


@dataclass(frozen=True)
class FieldError:
    """What is wrong at one place of the request; the pointer is a JSON pointer."""

    pointer: str
    message: str


class InvalidError(ServiceError):
    """Some fields are wrong."""

    code = "invalid"

    def __init__(self, message: str, errors: tuple[FieldError, ...], *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.errors = errors


class TooLargeError(ServiceError):
    """The upload is over its limit."""

    code = "too_large"


class DigestMismatchError(ServiceError):
    """The bytes that came are not those that were announced."""

    code = "digest_mismatch"


class AnswerInvalidError(ServiceError):
    """A unit's process has answered otherwise than was agreed."""

    code = "output_invalid"


class QuotaError(ServiceError):
    """The tenant has as much as it may have; later, or after it gave something up, the same request may succeed."""

    code = "quota_exceeded"

    def __init__(self, message: str, *, code: str, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_s = retry_after_s


class CorruptError(ServiceError):
    """Stored bytes no longer have their digest. They are never given out."""

    code = "corrupt"


class UnavailableError(ServiceError):
    """A part that is needed cannot be reached now; the same request may succeed later."""

    code = "unavailable"


class BackupError(ServiceError):
    """A backup cannot be made, read or restored."""

    code = "backup"


class UnauthorizedError(ServiceError):
    """No key, or one that is unknown, expired or revoked."""

    code = "unauthorized"
