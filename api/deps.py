"""What routes are given: the caller behind the key, and a session that is committed before the answer is sent."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from api.errors import ApiError
from api.traffic import Rates, Traffic
from api.watch import Change, Watcher
from services import audit, keys
from services.db import Database
from services.keys import Caller
from services.storage import Store
from settings import Settings

Scope = Literal["read", "write", "admin", "metrics"]
T = TypeVar("T")

# Whoever may write sees what came of it.
_GRANTED_BY: dict[Scope, frozenset[str]] = {
    "read": frozenset({"read", "write", "admin"}),
    "write": frozenset({"write", "admin"}),
    "admin": frozenset({"admin"}),
    "metrics": frozenset({"metrics", "admin"}),
}

_bearer = HTTPBearer(bearerFormat="opk_<id>_<secret>", scheme_name="key", auto_error=False)


@dataclass(frozen=True)
class Parts:
    """What one process of the edge works with; `request.app.state.parts`."""

    settings: Settings
    database: Database
    store: Store
    watcher: Watcher
    # Disk work of uploads and downloads, apart from the pool that serves the other routes.
    disk: CapacityLimiter
    # Reads of polls, streams and transfers: more threads than this only take the interpreter from each other.
    reads: CapacityLimiter
    rates: Rates


@dataclass
class At:
    """One request's caller and session."""

    session: Session
    caller: Caller
    parts: Parts
    # What a request makes; what it changes is in its address.
    subject: str | None = None

    @property
    def tenant_id(self) -> str:
        """Whose objects this request may see."""
        return self.caller.tenant_id


class Asked:
    """A request whose key is presented but not yet checked: every way to the database leads through the check."""

    def __init__(self, request: Request, key: str) -> None:
        self.parts: Parts = request.app.state.parts
        self.traffic: Traffic = request.app.state.traffic
        self._request = request
        self._key = key

    @contextmanager
    def reading(self, scope: Scope = "read") -> Iterator[At]:
        """Give a session that only reads; key and rows are read in one transaction."""
        with self.parts.database.reading() as session:
            yield At(session, self._caller(session, scope), self.parts)

    @contextmanager
    def writing(self, scope: Scope = "write") -> Iterator[At]:
        """Give a session that is committed at the end."""
        # The key is checked first, so that nobody without one gets hold of the only write lock that SQLite has.
        with self.parts.database.reading() as session:
            caller = self._caller(session, scope)
        with self.parts.database.transaction() as session:
            at = At(session, caller, self.parts)
            yield at
            self._audit(at)

    def _audit(self, at: At) -> None:
        """Note who did it in the transaction that does it: no route can forget to."""
        subject = at.subject or next(iter(self._request.path_params.values()), None)
        audit.record(
            at.session,
            at.caller,
            action=self._request.scope["route"].name,
            subject_id=subject,
            request_id=self._request.state.passage.request_id,
        )

    def _caller(self, session: Session, scope: Scope) -> Caller:
        caller = keys.authenticate(session, self._key)
        passage = self._request.state.passage
        if passage.key is None:
            # Once per request, however often it comes back to the database.
            self.parts.rates.take(caller.key_id)
        passage.key = caller.key_id
        if not caller.scopes & _GRANTED_BY[scope]:
            raise ApiError(403, f"The key lacks the scope `{scope}`.")
        return caller

    async def read(self, use: Callable[[At], T], scope: Scope = "read") -> T:
        """Run a function on a reading session, in a thread: one hop for key and row."""

        def work() -> T:
            with self.reading(scope) as at:
                return use(at)

        return await run_sync(work, limiter=self.parts.reads)

    async def read_after(self, change: Change | None, question: Hashable, use: Callable[[At], T]) -> T:
        """Read as `read` does, but once for all who hear of the same change, with the same key and the same question."""
        if change is None:
            return await self.read(use)
        return await change.once((self._key, question), lambda: self.read(use))

    async def write(self, use: Callable[[At], T], scope: Scope = "write") -> T:
        """Run a function on a writing session, in a thread, and commit."""

        def work() -> T:
            with self.writing(scope) as at:
                return use(at)

        return await run_sync(work)


async def ask(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Asked:
    """Take the key from the header; raises 401 where there is none."""
    if credentials is None:
        raise ApiError(401)
    return Asked(request, credentials.credentials)


AskedFor = Annotated[Asked, Depends(ask)]


def _reading(asked: AskedFor) -> Iterator[At]:
    with asked.reading() as at:
        yield at


def _writing(asked: AskedFor) -> Iterator[At]:
    with asked.writing() as at:
        yield at


def _overseeing(asked: AskedFor) -> Iterator[At]:
    with asked.reading("admin") as at:
        yield at


def _administering(asked: AskedFor) -> Iterator[At]:
    with asked.writing("admin") as at:
        yield at


# With the default scope the client would get its answer before the commit, even when the commit fails.
Reading = Annotated[At, Depends(_reading, scope="function")]
Writing = Annotated[At, Depends(_writing, scope="function")]
Overseeing = Annotated[At, Depends(_overseeing, scope="function")]
Administering = Annotated[At, Depends(_administering, scope="function")]
