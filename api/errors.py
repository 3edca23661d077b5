"""The only mapping from what can go wrong to HTTP: problem details (RFC 9457) for every error.

Texts come from a closed set: the services' and the engine's own sentences, pydantic's words on a field, and those below.
No exception's text and no path of this machine reaches a client.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, Self

from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException as RoutingError

from services import errors as services

log = logging.getLogger("onnxpress.api")

MEDIA_TYPE = "application/problem+json"

_DEFAULTS = {
    400: ("bad_request", "The request cannot be read."),
    401: ("unauthorized", "A valid key is required: `Authorization: Bearer opk_...`."),
    403: ("forbidden", "The key lacks the scope for this."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method; see the header Allow."),
    406: ("not_acceptable", "This is not offered in a format that the header Accept takes."),
    408: ("request_timeout", "The request arrived too slowly."),
    409: ("conflict", "The request conflicts with the current state."),
    410: ("gone", "It was there, and its time is over."),
    412: ("precondition_failed", "The request is of a version that is not spoken here."),
    413: ("too_large", "The body is over the limit."),
    415: ("unsupported_media_type", "The body's Content-Type is not taken here."),
    416: ("range_not_satisfiable", "The range lies outside of the bytes; see the header Content-Range."),
    422: ("invalid", "The request is not valid."),
    429: ("rate_limited", "Too many requests, or a quota is used up; see the header Retry-After."),
    460: ("checksum_mismatch", "The bytes that came do not have the announced checksum."),
    500: ("internal_error", "The service failed; the request id finds it in the log."),
    503: ("unavailable", "The service cannot answer right now; try again."),
}
# Not of HTTP's own.
_TITLES = {460: "Checksum Mismatch"}
_RETRYABLE = frozenset({408, 429, 500, 503})
_RETRY_AFTER = {429: "5", 503: "2"}
_STATUS: dict[type[services.ServiceError], int] = {
    services.UnauthorizedError: 401,
    services.NotFoundError: 404,
    services.ConflictError: 409,
    services.GoneError: 410,
    services.TooLargeError: 413,
    services.DigestMismatchError: 400,
    services.RejectedError: 422,
    services.InvalidError: 422,
    services.QuotaError: 429,
    services.CorruptError: 500,
    services.UnavailableError: 503,
}


# Names that a request or a network brings stand in them: an answer is not to grow with those.
_LETTERS, _POINTER_LETTERS, _MOST_ERRORS = 4000, 1000, 100


def _cut(most: int) -> BeforeValidator:
    return BeforeValidator(
        lambda text: f"{text[: most - 3]}..." if isinstance(text, str) and len(text) > most else text
    )


_Sentence = Annotated[str, _cut(_LETTERS)]


class FieldError(BaseModel):
    """One thing that is wrong with the request."""

    pointer: Annotated[str | None, _cut(_POINTER_LETTERS)] = Field(
        None, description="JSON pointer (RFC 6901) into the body; a very long one is cut."
    )
    parameter: str | None = Field(None, description="Or the name of the query parameter, header or path part.")
    detail: _Sentence


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    # Codes may bring members of their own, such as the id of a rejected upload.
    model_config = ConfigDict(extra="allow")

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable, for programs.")
    detail: _Sentence = Field(description="For people.")
    retryable: bool = Field(description="True: the same request may succeed later.")
    request_id: str = ""
    errors: list[FieldError] = Field(default_factory=list, description="The first hundred, where there are more.")
    hint: _Sentence | None = None
    node: _Sentence | None = Field(None, description="The network's node that the problem is about.")
    step: int | None = Field(None, description="The recipe's step that the problem is about.")
    targets: list[str] | None = Field(None, description="The providers that a job may be for.")

    @classmethod
    def of(cls, status: int, code: str, detail: str, request_id: str = "", **more: Any) -> Self:
        """Make a problem; title and retryable follow from the status."""
        return cls(
            title=_TITLES.get(status) or HTTPStatus(status).phrase,
            status=status,
            code=code,
            detail=detail,
            request_id=request_id,
            **{"retryable": status in _RETRYABLE, **more, "errors": list(more.get("errors", ()))[:_MOST_ERRORS]},
        )


class ApiError(HTTPException):
    """A refusal by the HTTP edge itself; `code` and the sentence default to the status's."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status, detail or _DEFAULTS[status][1], dict(headers or {}))
        self.code = code or _DEFAULTS[status][0]
        self.errors = list(errors)
        self.more = more


def status_problem(status: int, request_id: str = "") -> Problem:
    """Give the problem that a status stands for where there is no more to say."""
    return Problem.of(status, *_DEFAULTS[status], request_id)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Give the response that carries a problem."""
    extra = dict(headers or {})
    if problem.status in _RETRY_AFTER:
        extra.setdefault("Retry-After", _RETRY_AFTER[problem.status])
    if problem.status == HTTPStatus.UNAUTHORIZED:
        extra["WWW-Authenticate"] = 'Bearer realm="onnxpress"'
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status_code=problem.status, headers=extra, media_type=MEDIA_TYPE)


def pointer(loc: Sequence[Any], body: Any) -> str:
    """Turn pydantic's location into a JSON pointer into the body that was sent.

    Pydantic names the member of a union that it tried; no such key is in the body, so it is left out.
    """
    found: list[str] = []
    at = body
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (isinstance(at, Mapping) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        ):
            at = at[part]
        elif not last or not isinstance(at, Mapping):
            continue
        found.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in found)


def _sentence(error: Mapping[str, Any]) -> str:
    context = error.get("ctx") or {}
    kind = error["type"]
    if kind == "union_tag_invalid":
        return f"Unknown {str(context['discriminator']).strip(chr(39))} {_quoted(context['tag'])}; known: {context['expected_tags']}."
    if kind == "union_tag_not_found":
        return f"The field {context['discriminator']} is missing."
    if kind == "extra_forbidden":
        return "This field is not known."
    if kind == "missing":
        return "This field is required."
    if kind == "json_invalid":
        return f"The body is not JSON: {context.get('error', 'it cannot be parsed')}."
    said = str(error["msg"]).removeprefix("Value error, ")
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!")) else ".")


def _quoted(text: object) -> str:
    return ascii(str(text)[:64])


def _inside(loc: Sequence[Any], outer: Sequence[Any]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _field_errors(errors: Sequence[Any], body: Any) -> Iterator[FieldError]:
    for one in errors:
        # A list whose items are wrong is also told to be too short: that would only confuse.
        if one["type"] == "too_short" and any(_inside(other["loc"], one["loc"]) for other in errors):
            continue
        where, *loc = one["loc"]
        if where != "body":
            yield FieldError(parameter=str(loc[0]) if loc else str(where), detail=_sentence(one))
        elif one["type"] == "json_invalid":
            yield FieldError(pointer="", detail=_sentence(one))
        else:
            at = pointer(loc, body)
            # A wrong tag is reported at the object that holds it.
            tag = f"/{one['ctx']['discriminator'].strip(chr(39))}" if one["type"].startswith("union_tag") else ""
            yield FieldError(pointer=at + tag, detail=_sentence(one))


def install(app: FastAPI) -> None:
    """Have every error that a route can raise answered as a problem."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(RoutingError, _on_http)
    app.add_exception_handler(services.ServiceError, _on_service)
    app.add_exception_handler(OperationalError, _on_database)
    app.add_exception_handler(PoolTimeoutError, _on_database)


def _request_id(request: Request) -> str:
    return str(request.state.request_state.request_id)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = error.errors()
    # Each takes a while to put into words, and no more of them are told.
    found = list(_field_errors(told[:_MOST_ERRORS], error.body))
    count = len(found) if len(told) <= _MOST_ERRORS else len(told)
    where = found[0].pointer if found[0].pointer is not None else found[0].parameter
    detail = f"{where or 'body'}: {found[0].detail}"
    if count > 1:
        detail += f" There are {count} errors in all."
    return problem_response(Problem.of(422, "invalid", detail, _request_id(request), errors=found))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, RoutingError)
    status = error.status_code
    code, sentence = _DEFAULTS.get(status) or ("error", HTTPStatus(status).phrase)
    # Starlette's and FastAPI's own texts are phrases; ours are sentences.
    detail = error.detail if error.detail.endswith(".") else sentence
    more: dict[str, Any] = {}
    headers = error.headers
    if isinstance(error, ApiError):
        code = error.code
        more = {"errors": error.errors, **error.more}
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        # The description is made when it is first asked for, which takes a second.
        headers = {"Allow": ", ".join(await run_sync(_methods, request)) or "GET"}
    return problem_response(Problem.of(status, code, detail, _request_id(request), **more), headers)


def _methods(request: Request) -> list[str]:
    """List what the address takes, by all its routes: the router tells of the first one only."""
    path = request.scope["path"]
    return sorted(
        method.upper()
        for template, ways in request.app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(template)), path)
        for method in ways
    )


async def _on_service(request: Request, error: Exception) -> Response:
    assert isinstance(error, services.ServiceError)
    problem = problem_of(error, _request_id(request))
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, services.QuotaError) else None
    if isinstance(error, services.CorruptError):
        log.error("request %s: stored bytes are damaged", problem.request_id)
    return problem_response(problem, headers)


def problem_of(error: services.ServiceError, request_id: str = "") -> Problem:
    """Give the problem that tells of a refusal."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    more: dict[str, Any] = {"hint": error.hint}
    if isinstance(error, services.InvalidError):
        more["errors"] = [FieldError(pointer=one.pointer, detail=one.message) for one in error.errors]
    if isinstance(error, services.RejectedError) and error.problem:
        more |= {
            key: error.problem[key] for key in ("node", "step", "hint", "targets") if error.problem.get(key) is not None
        }
    if isinstance(error, services.CorruptError):
        # Trying again reads the same bytes.
        more["retryable"] = False
    return Problem.of(status, error.exact_code, error.message, request_id, **more)


async def _on_database(request: Request, error: Exception) -> Response:
    log.warning("request %s: the database does not answer", _request_id(request), exc_info=error)
    return problem_response(status_problem(503, _request_id(request)))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe a /v1 route's error answers for OpenAPI: the given ones and those that any route may give."""
    return {
        status: {
            "description": _DEFAULTS[status][1],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({400, 401, 422, 429, 500, 503, *statuses})
    }
