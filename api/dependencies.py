"""What routes are given: the caller behind the key, and a session that is committed before the answer is sent."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.errors import ApiError
from api.long_polling import Change, Watcher
from api.pages import session as browser
from api.rate_limit import RateLimiter
from api.request_metrics import RequestMetrics
from models import ROW_BYTES
from services import audit, keys, quotas
from services.db import Database
from services.errors import UnauthorizedError
from services.keys import Caller
from services.server_secret import ServerSecret
from services.storage import Store
from settings import Settings

KeyScope = Literal["read", "write", "admin", "metrics", "operator"]
T = TypeVar("T")

# Whoever may write sees what came of it.
_GRANTED_BY: dict[KeyScope, frozenset[str]] = {
    "read": frozenset({"read", "write", "admin"}),
    "write": frozenset({"write", "admin"}),
    "admin": frozenset({"admin"}),
    "metrics": frozenset({"metrics", "admin"}),
    # Of all tenants: no administrator of one has it.
    "operator": frozenset({"operator"}),
}

_bearer = HTTPBearer(bearerFormat="opk_<id>_<secret>", scheme_name="key", auto_error=False)


@dataclass(frozen=True)
class Resources:
    """What one process of the edge works with; `request.app.state.resources`."""

    settings: Settings
    database: Database
    store: Store
    watcher: Watcher
    # Disk work of uploads and downloads, apart from the pool that serves the other routes.
    disk: CapacityLimiter
    # Reads of polls, streams and transfers: more threads than this only take the interpreter from each other.
    reads: CapacityLimiter
    rate_limiter: RateLimiter
    secret: ServerSecret
    # Of health checks: threads that no request waits for.
    health: CapacityLimiter


@dataclass
class TenantScope:
    """What one request may reach: a session, and the caller whose tenant's objects it may see."""

    session: Session
    caller: Caller
    resources: Resources
    # What a request makes; what it changes is in its address.
    subject: str | None = None

    @property
    def tenant_id(self) -> str:
        """Whose objects this request may see."""
        return self.caller.tenant_id

    def check_room(self) -> None:
        """Raise QuotaError where the tenant's quota has no room for one more row."""
        quotas.check_bytes(self.session, self.tenant_id, ROW_BYTES, self.resources.settings)


class RequestContext:
    """A request whose key is presented but not yet checked: every way to the database leads through the check."""

    def __init__(self, request: Request, key: str) -> None:
        self.resources: Resources = request.app.state.resources
        self.request_metrics: RequestMetrics = request.app.state.request_metrics
        self._request = request
        self._key = key

    @contextmanager
    def reading(self, needs: KeyScope = "read") -> Iterator[TenantScope]:
        """Give a session that only reads; key and rows are read in one transaction."""
        with self.resources.database.reading() as session:
            yield TenantScope(session, self._caller(session, needs), self.resources)

    @contextmanager
    def writing(self, needs: KeyScope = "write") -> Iterator[TenantScope]:
        """Give a session that is committed at the end."""
        # The key is checked first, so that nobody without one gets hold of the only write lock that SQLite has.
        with self.resources.database.reading() as session:
            caller = self._caller(session, needs)
        with self.resources.database.transaction() as session:
            scope = TenantScope(session, caller, self.resources)
            yield scope
            self._audit(scope)

    def _audit(self, scope: TenantScope) -> None:
        """Note who did it in the transaction that does it: no route can forget to."""
        subject = scope.subject or next(iter(self._request.path_params.values()), None)
        audit.record(
            scope.session,
            scope.caller,
            action=self._request.scope["route"].name,
            subject_id=subject,
            request_id=self._request.state.request_state.request_id,
        )

    def _caller(self, session: Session, needs: KeyScope) -> Caller:
        caller = keys.authenticate(session, self._key)
        request_state = self._request.state.request_state
        if request_state.key is None:
            # Once per request, however often it comes back to the database.
            self.resources.rate_limiter.take(caller)
        request_state.key = caller.key_id
        if not caller.scopes & _GRANTED_BY[needs]:
            raise ApiError(403, f"The key lacks the scope `{needs}`.")
        return caller

    async def read(self, use: Callable[[TenantScope], T], needs: KeyScope = "read") -> T:
        """Run a function on a reading session, in a thread: one hop for key and row."""

        def work() -> T:
            with self.reading(needs) as scope:
                return use(scope)

        return await run_sync(work, limiter=self.resources.reads)

    async def read_after(self, change: Change | None, question: Hashable, use: Callable[[TenantScope], T]) -> T:
        """Read as `read` does, but once for all who hear of the same change, with the same key and the same question."""
        if change is None:
            return await self.read(use)
        return await change.once((self._key, question), lambda: self.read(use))

    async def write(self, use: Callable[[TenantScope], T], needs: KeyScope = "write") -> T:
        """Run a function on a writing session, in a thread, and commit."""

        def work() -> T:
            with self.writing(needs) as scope:
                return use(scope)

        return await run_sync(work)


def _presented_key(connection: HTTPConnection) -> str | None:
    """Give the key in the header, else that in a signed-in browser's cookie.

    Raises 403 where another site has the browser act.
    """
    kind, text = get_authorization_scheme_param(connection.headers.get("authorization"))
    if kind.lower() == "bearer" and text:
        return text
    key = browser.key_in_cookie(connection)
    if key is not None and not browser.comes_from_here(connection):
        said = "A page of another site sent this; a signed-in browser acts for our pages only."
        raise ApiError(403, said, code="cross_site")
    return key


async def refuse_strangers(scope: Scope) -> None:
    """Raise 401 where a request comes without a valid key, 503 where nobody can tell: before anything of its body is read."""
    key = _presented_key(HTTPConnection(scope))
    if key is None:
        raise ApiError(401)
    resources: Resources = scope["app"].state.resources

    def authenticate() -> None:
        with resources.database.reading() as session:
            keys.authenticate(session, key)

    try:
        await run_sync(authenticate, limiter=resources.reads)
    except UnauthorizedError as error:
        raise ApiError(401, error.message) from None
    except (OperationalError, PoolTimeoutError) as error:
        # Whoever reads a body takes other exceptions for faults of the body.
        raise ApiError(503) from error


async def request_context(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> RequestContext:
    """Take the key from the header, or from a browser that is signed in; raises 401 where there is none."""
    key = _presented_key(request) if credentials is None else credentials.credentials
    if key is None:
        raise ApiError(401)
    return RequestContext(request, key)


Context = Annotated[RequestContext, Depends(request_context)]


def _read_scope(context: Context) -> Iterator[TenantScope]:
    with context.reading() as scope:
        yield scope


def _write_scope(context: Context) -> Iterator[TenantScope]:
    with context.writing() as scope:
        yield scope


def _admin_read_scope(context: Context) -> Iterator[TenantScope]:
    with context.reading("admin") as scope:
        yield scope


def _admin_write_scope(context: Context) -> Iterator[TenantScope]:
    with context.writing("admin") as scope:
        yield scope


def _operator_read_scope(context: Context) -> Iterator[TenantScope]:
    with context.reading("operator") as scope:
        yield scope


def _operator_write_scope(context: Context) -> Iterator[TenantScope]:
    with context.writing("operator") as scope:
        yield scope


# With the default scope the client would get its answer before the commit, even when the commit fails.
ReadScope = Annotated[TenantScope, Depends(_read_scope, scope="function")]
WriteScope = Annotated[TenantScope, Depends(_write_scope, scope="function")]
AdminReadScope = Annotated[TenantScope, Depends(_admin_read_scope, scope="function")]
AdminWriteScope = Annotated[TenantScope, Depends(_admin_write_scope, scope="function")]
OperatorReadScope = Annotated[TenantScope, Depends(_operator_read_scope, scope="function")]
OperatorWriteScope = Annotated[TenantScope, Depends(_operator_write_scope, scope="function")]
