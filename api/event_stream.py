"""What happens to a job, as server-sent events and as lines."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from fastapi import Response
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

import models
from api.dependencies import RequestContext, TenantScope
from api.errors import ApiError
from models import Event, Job
from services import jobs
from services.errors import ServiceError

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "With Last-Event-ID: that was the last one."},
}
# Proxies cut connections that are silent for long.
_BEAT_S = 15.0
_AT_ONCE = 500


@dataclass(frozen=True)
class _JobNews:
    """A job's state and what happened since, written out in the thread that read it."""

    version: str
    final: bool
    last: int
    text: str
    # Whether there may be more.
    full: bool

    @classmethod
    def of(cls, row: Job, told: list[Event], after: int) -> Self:
        last = told[-1].id if told else after
        text = "".join(map(_sse, told))
        return cls(str(row.version), models.is_final(row.in_status), last, text, len(told) == _AT_ONCE)


async def event_stream(context: RequestContext, job_id: str, *, after: int) -> Response:
    """Answer with the job's events after one of them, those to come included."""

    def read(last: int, scope: TenantScope) -> _JobNews:
        return _JobNews.of(*jobs.news(scope.session, scope.tenant_id, job_id, after=last, limit=_AT_ONCE), last)

    first = await context.read(partial(read, after))
    if after and not first.text and first.final:
        return Response(status_code=204)

    async def stream() -> AsyncIterator[str]:
        news = first
        # A browser whose connection breaks comes back after so many milliseconds.
        yield "retry: 2000\n\n"
        while True:
            if news.text:
                yield news.text
            change = None
            if not news.full:
                # The job was read before its events: where it was final, these were the last.
                if news.final or context.resources.watcher.closed:
                    return
                change = await context.resources.watcher.wait(job_id, news.version, _BEAT_S)
                if change is None:
                    yield ": still here\n\n"
            try:
                news = await context.read_after(change, ("events", news.last), partial(read, news.last))
            except (ApiError, ServiceError, SQLAlchemyError):
                # The key was revoked or the database is away: who comes back is told so by a proper answer.
                return

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def log_line(event: Event) -> str:
    """Give an event as a line for people."""
    attempt = f" attempt {event.attempt}" if event.attempt else ""
    moment = event.created_at.isoformat(timespec="milliseconds")
    return f"{moment}{attempt} {event.type}{''.join(_words(event.data))}\n"


def _words(data: dict[str, Any]) -> Sequence[str]:
    return [f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in data.items() if value is not None]


def _sse(event: Event) -> str:
    data = {"at": event.created_at.isoformat(), "attempt": event.attempt, **event.data}
    return f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(data)}\n\n"
