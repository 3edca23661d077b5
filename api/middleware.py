"""What every request passes through: a request id, limits of its body, security headers, the access log, the last-resort 500."""

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

from api.errors import Problem, problem_response

log = logging.getLogger("onnxpress.api")
access_log = logging.getLogger("onnxpress.access")

# What JSON bodies may weigh; uploads raise their own request's limit.
JSON_BODY_LIMIT = 1 << 20
# A client that sends less than this, or nothing for so long, holds a connection for no use.
MIN_BYTES_PER_S = 1024
SILENCE_S = 30.0

_JOB_ID = re.compile(r"job_[0-9a-z]{26}")
_HEALTH = frozenset({"/livez", "/readyz"})
_REQUEST_ID = re.compile(r"[0-9A-Za-z_.\-]{1,64}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class RequestState:
    """What is known of one request; routes reach it as `request.state.request_state`."""

    request_id: str
    body_limit: int = JSON_BODY_LIMIT
    received: int = 0
    sent: int = 0
    status: int = 0
    key: str | None = None
    started: float = field(default_factory=time.monotonic)

    def admit(self, size: int) -> None:
        """Raise 413 if a body of `size` bytes is too large."""
        if size > self.body_limit:
            raise HTTPException(413, f"The body is larger than the limit of {self.body_limit} bytes.")


class RequestMiddleware:
    """ASGI middleware round the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_state = RequestState(_request_id(scope))
        scope.setdefault("state", {})["request_state"] = request_state
        try:
            await self._serve(
                request_state, scope, _limited(request_state, scope, receive), _with_headers(request_state, send)
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
            await self.app(scope, receive, send)
        except ClientDisconnect:
            request_state.status = 499
        except Exception:
            # The edge of the process: whatever nobody mapped is logged whole and told without its text.
            log.exception("request %s failed: %s %s", request_state.request_id, scope["method"], scope["path"])
            if request_state.status:
                raise
            problem = Problem.of(500, "internal_error", "The service failed; the request id finds it in the log.")
            problem.request_id = request_state.request_id
            await problem_response(problem)(scope, receive, send)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _limited(request_state: RequestState, scope: Scope, receive: Receive) -> Receive:
    declared = Headers(scope=scope).get("content-length", "")
    complete = False

    async def limited() -> Message:
        nonlocal complete
        if complete:
            # What is waited for now is only the client's leaving, which may take as long as it likes.
            return await receive()
        if declared.isdecimal():
            request_state.admit(int(declared))
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await receive()
        except TimeoutError:
            raise _too_slow() from None
        if message["type"] == "http.request":
            request_state.received += len(message.get("body", b""))
            request_state.admit(request_state.received)
            complete = not message.get("more_body", False)
            if request_state.received < MIN_BYTES_PER_S * (time.monotonic() - request_state.started - SILENCE_S):
                raise _too_slow()
        return message

    return limited


def _too_slow() -> HTTPException:
    return HTTPException(408, headers={"Connection": "close"})


def _with_headers(request_state: RequestState, send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            request_state.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = request_state.request_id
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            # What a key may read is not for shared caches.
            headers.setdefault("Cache-Control", "private, no-cache")
        elif message["type"] == "http.response.body":
            request_state.sent += len(message.get("body", b""))
        await send(message)

    return with_headers


def _log_access(request_state: RequestState, scope: Scope) -> None:
    route = scope.get("route")
    # A load balancer asks every second.
    level = logging.DEBUG if scope["path"] in _HEALTH and request_state.status == 200 else logging.INFO
    seconds = time.monotonic() - request_state.started
    path = getattr(route, "path", None)
    scope["app"].state.request_metrics.count(scope["method"], path, request_state.status, seconds)
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
        "client": (scope.get("client") or ("",))[0],
    }
    if found := _JOB_ID.search(scope["path"]):
        fields["job"] = found[0]
    access_log.log(level, "%s", json.dumps(fields), extra={"fields": fields})
