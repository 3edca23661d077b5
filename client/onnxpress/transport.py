"""Requests that come through where they safely can, and errors that say what the service said."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import httpx

from onnxpress.configuration import Access, Patience, shown
from onnxpress.deadline import NEVER, Deadline
from onnxpress.errors import OnnxpressError, UnexpectedAnswerError, UnreachableError, error_for
from onnxpress.problem import Problem

CONNECT_S = 10.0
SILENCE_S = 60.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
# A service that says to come back at once, again and again, is not to be flooded.
_FLOOR_S = 1.0
SAFE = frozenset({"GET", "HEAD"})
WORTH_RETRYING = frozenset({408, 429, 502, 503, 504})
# A connection that never came about carried nothing, so that any request may be sent again.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
IN_FLIGHT = "idempotency_in_flight"


@dataclass(frozen=True)
class ApiRequest:
    """One request, ready to be sent as often as it takes: a streamed body is opened anew each time."""

    method: str
    path: str
    query: Mapping[str, str | int | float | Sequence[str]] | None = None
    body: Mapping[str, Any] | None = None
    stream: Callable[[], Iterator[bytes]] | None = None
    headers: Mapping[str, str] | None = None
    # How long the service may stay silent beyond the usual: the wait of a long poll.
    wait_s: float = 0.0

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        return self.method in SAFE or "Idempotency-Key" in (self.headers or {})


class Transport:
    """Sends requests with the key, and again while that is safe and patience is not over."""

    def __init__(
        self, access: Access, *, patience: Patience, on_retry: Callable[[str, float], None] | None = None
    ) -> None:
        self._patience = patience
        self._answered = False
        self.on_retry = on_retry
        headers = {"User-Agent": f"onnxpress/{version('onnxpress')}", "Accept": "application/json"}
        if access.key:
            headers["Authorization"] = f"Bearer {access.key}"
        # A proxy from the environment has no business between this host and itself.
        self._http = httpx.Client(base_url=access.url, headers=headers, trust_env=not access.local)
        self.url = shown(access.url)

    @property
    def patience(self) -> float:
        """How many seconds to try again."""
        return self._patience.later if self._answered else self._patience.first

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def fetch(self, request: ApiRequest, deadline: Deadline = NEVER) -> httpx.Response:
        """Send and give the answer with its whole body; errors of the service are raised."""
        return self._answer(request, deadline, whole=True)

    def json(self, request: ApiRequest, deadline: Deadline = NEVER) -> dict[str, Any]:
        """Send and give the answer's JSON object."""
        return read_json(self.fetch(request, deadline))

    @contextmanager
    def open(self, request: ApiRequest, deadline: Deadline = NEVER) -> Iterator[httpx.Response]:
        """Send and give the answer before its body is read, for bodies that are long."""
        answer = self._answer(request, deadline, whole=False)
        try:
            yield answer
        finally:
            answer.close()

    def _answer(self, request: ApiRequest, deadline: Deadline, *, whole: bool) -> httpx.Response:
        backoff = Backoff(self.patience, deadline, self.on_retry)
        while True:
            try:
                answer = self._send(request, deadline, whole=whole)
            except httpx.TransportError as error:
                # A read that timed out at the deadline is the deadline's fault, not the service's.
                deadline.left(1)
                if not (request.repeatable or isinstance(error, NEVER_SENT)) or not backoff.pause(
                    f"no answer: {_reason(error)}"
                ):
                    raise unreachable(self.url, error) from error
                continue
            self._answered = True
            if answer.is_success or answer.status_code == httpx.codes.NOT_MODIFIED:
                return answer
            problem = _problem(answer)
            again = answer.status_code in WORTH_RETRYING or problem.code == IN_FLIGHT
            if not (again and request.repeatable and backoff.pause(problem.title, _retry_after(answer))):
                raise error_for(problem)

    def _send(self, request: ApiRequest, deadline: Deadline, *, whole: bool) -> httpx.Response:
        silence = deadline.left(SILENCE_S + request.wait_s)
        message = self._http.build_request(
            request.method,
            f"/v1{request.path}",
            params=request.query,
            json=request.body,
            content=request.stream() if request.stream else None,
            headers=request.headers,
            timeout=httpx.Timeout(silence, connect=min(CONNECT_S, silence)),
        )
        answer = self._http.send(message, stream=True)
        if whole or answer.is_error:
            try:
                answer.read()
            finally:
                answer.close()
        return answer


class Backoff:
    """Pauses between attempts, each longer than the last, until the time for it is over."""

    def __init__(
        self, seconds: float, deadline: Deadline, on_retry: Callable[[str, float], None] | None = None
    ) -> None:
        self._end = time.monotonic() + seconds
        self._deadline = deadline
        self._on_retry = on_retry
        self._pause = FIRST_PAUSE_S

    def pause(self, reason: str, asked: float | None = None) -> bool:
        """Sleep before the next attempt, as long as the service asked for; False when there is no time for another."""
        # The jitter keeps clients that failed together from coming back together.
        own = self._pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        pause = own if asked is None else max(asked, min(own, _FLOOR_S))
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        if time.monotonic() + pause > self._end:
            return False
        if self._on_retry:
            self._on_retry(reason, pause)
        time.sleep(self._deadline.left(pause))
        self._deadline.left(1)
        return True


def unreachable(url: str, error: httpx.TransportError) -> OnnxpressError:
    """Give the error for a service that could not be talked to."""
    return UnreachableError(f"the service at {url} cannot be reached: {_reason(error)}")


def _reason(error: httpx.TransportError) -> str:
    return shown(str(error)) or type(error).__name__


def read_json(answer: httpx.Response) -> dict[str, Any]:
    """Read the JSON object of an answer; raises UnexpectedAnswerError when it holds none."""
    try:
        document = json.loads(answer.content)
    except ValueError as error:
        raise UnexpectedAnswerError(_not_ours(answer)) from error
    if not isinstance(document, dict):
        raise UnexpectedAnswerError(_not_ours(answer))
    return document


def _not_ours(answer: httpx.Response) -> str:
    return f"{answer.request.method} {shown(answer.request.url)} gave no JSON object; is this an onnxpress service?"


def _problem(answer: httpx.Response) -> Problem:
    try:
        document = json.loads(answer.content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return Problem.from_document(document, status=answer.status_code)
    return Problem(f"{answer.status_code} {answer.reason_phrase}", status=answer.status_code)


def _retry_after(answer: httpx.Response) -> float | None:
    """Read Retry-After, which holds seconds or a date."""
    text = answer.headers.get("Retry-After")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
