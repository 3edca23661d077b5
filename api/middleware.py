"""What every request passes through.

A request id, a place among those that are answered, the key before the body, limits of the body, security headers, the access
log, and the last-resort 500.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.admission import HEALTH
from api.dependencies import refuse_strangers
from api.errors import ApiError, Problem, problem_response, status_problem
from api.security_headers import security_headers

log = logging.getLogger("onnxpress.api")
access_log = logging.getLogger("onnxpress.access")

# What JSON bodies may weigh; uploads raise their own request's limit.
JSON_BODY_LIMIT = 1 << 20
# So many values they may hold at most: a megabyte of empty objects is parsed in no time, and told wrong one by one for many seconds,
# in which this process answers nobody. What is asked for names nodes of networks, by the thousand at most.
MOST_VALUES = 10_000
# What comes without a key: the form for signing in.
FORM_BODY_LIMIT = 16 << 10
# A client that sends less than this, or nothing for so long, holds a connection for no use.
MIN_BYTES_PER_S = 1024
SILENCE_S = 30.0

_JOB_ID = re.compile(r"job_[0-9a-z]{26}")
_REQUEST_ID = re.compile(r"[0-9A-Za-z_.\-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
# A body under these is read only when its key is known.
_GUARDED = "/v1/"


@dataclass
class RequestState:
    """What is known of one request; routes reach it as `request.state.request_state`."""

    request_id: str
    client: str = ""
    body_limit: int = JSON_BODY_LIMIT
    # How many values of a document may still come; None: what comes is no document but a file.
    values_left: int | None = MOST_VALUES
    received: int = 0
    sent: int = 0
    status: int = 0
    key: str | None = None
    # False until all of the body was handed out.
    body_complete: bool = True
    started: float = field(default_factory=time.monotonic)

    def admit(self, size: int) -> None:
        """Raise 413 if a body of `size` bytes is too large."""
        if size > self.body_limit:
            raise HTTPException(413, f"The body is larger than the limit of {self.body_limit} bytes.")

    def take_file(self, limit: int) -> None:
        """Have the body be a file of at most so many bytes."""
        self.body_limit, self.values_left = limit, None

    def count_values(self, part: bytes) -> None:
        """Raise 413 if the document has more values than anybody needs; those in texts, which look alike, count too."""
        if self.values_left is None:
            return
        self.values_left -= sum(map(part.count, (b",", b"{", b"[")))
        if self.values_left < 0:
            raise HTTPException(413, f"The body holds more than the limit of {MOST_VALUES} values.")


class RequestMiddleware:
    """ASGI middleware round the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = JSON_BODY_LIMIT if scope["path"].startswith(_GUARDED) else FORM_BODY_LIMIT
        request_state = RequestState(_request_id(scope), _client(scope), limit, body_complete=not _has_body(scope))
        scope.setdefault("state", {})["request_state"] = request_state
        try:
            await self._serve(
                request_state, scope, _limited(request_state, scope, receive), _with_headers(request_state, scope, send)
            )
        finally:
            _log_access(request_state, scope)

    async def _serve(self, request_state: RequestState, scope: Scope, receive: Receive, send: Send) -> None:
        # A NUL passes through URL decoding, and no database takes one in a text.
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            problem = Problem.of(400, "bad_request", "The address holds a NUL byte.", request_state.request_id)
            await problem_response(problem)(scope, receive, send)
            return
        try:
            with scope["app"].state.admission.admitted(scope["path"], request_state.client):
                await self.app(scope, receive, send)
        except ApiError as error:
            # Routes' own are answered inside: this one was not admitted.
            problem = Problem.of(error.status_code, error.code, error.detail, request_state.request_id)
            await problem_response(problem)(scope, receive, send)
        except ClientDisconnect:
            request_state.status = 499
        except Exception:
            # The edge of the process: whatever nobody mapped is logged whole and told without its text.
            log.exception("request %s failed: %s %s", request_state.request_id, scope["method"], scope["path"])
            if request_state.status:
                raise
            await problem_response(status_problem(500, request_state.request_id))(scope, receive, send)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _client(scope: Scope) -> str:
    peer = (scope.get("client") or ("",))[0]
    return str(scope["app"].state.proxies.client(peer, Headers(scope=scope).getlist("x-forwarded-for")))


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _limited(request_state: RequestState, scope: Scope, receive: Receive) -> Receive:
    declared = Headers(scope=scope).get("content-length", "")
    asks_for_key = not request_state.body_complete and scope["path"].startswith(_GUARDED)
    ended = False

    async def limited() -> Message:
        nonlocal asks_for_key, ended
        if ended:
            # What is waited for now is only the client's leaving, which may take as long as it likes.
            return await receive()
        if asks_for_key:
            await refuse_strangers(scope)
            asks_for_key = False
        if declared.isdecimal():
            request_state.admit(int(declared))
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await receive()
        except TimeoutError:
            raise _too_slow() from None
        if message["type"] == "http.request":
            part = message.get("body", b"")
            request_state.received += len(part)
            request_state.admit(request_state.received)
            request_state.count_values(part)
            ended = request_state.body_complete = not message.get("more_body", False)
            if request_state.received < MIN_BYTES_PER_S * (time.monotonic() - request_state.started - SILENCE_S):
                raise _too_slow()
        return message

    return limited


def _too_slow() -> HTTPException:
    return HTTPException(408, headers={"Connection": "close"})


def _with_headers(request_state: RequestState, scope: Scope, send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            request_state.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = request_state.request_id
            for name, value in security_headers(headers.get("content-type", "")).items():
                headers.setdefault(name, value)
            if not request_state.body_complete:
                # Nobody reads the rest.
                headers["Connection"] = "close"
            if scope["path"].startswith("/v1/uploads"):
                # Its protocol says so of every answer, errors too.
                headers["Tus-Resumable"] = "1.0.0"
        elif message["type"] == "http.response.body":
            request_state.sent += len(message.get("body", b""))
        await send(message)

    return with_headers


def _log_access(request_state: RequestState, scope: Scope) -> None:
    route = scope.get("route")
    # A load balancer asks every second.
    level = logging.DEBUG if scope["path"] in HEALTH and request_state.status == 200 else logging.INFO
    seconds = time.monotonic() - request_state.started
    path = getattr(route, "path", None)
    # Anybody may make up a method; each would be a series of its own.
    method = scope["method"] if scope["method"] in _METHODS else "other"
    scope["app"].state.request_metrics.count(method, path, request_state.status, seconds)
    if not access_log.isEnabledFor(level):
        return
    fields = {
        "request_id": request_state.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "route": path,
        "status": request_state.status,
        "ms": round(seconds * 1000, 1),
        "received": request_state.received,
        "sent": request_state.sent,
        "key": request_state.key,
        "client": request_state.client,
    }
    if found := _JOB_ID.search(scope["path"]):
        fields["job"] = found[0]
    # Who has a key is held to its rate; strangers are not, and may not fill the log.
    told = {"fields": fields, "always": request_state.key is not None}
    access_log.log(level, "%s", json.dumps(fields), extra=told)
