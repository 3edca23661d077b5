"""Long polling: one task asks the database for all who wait, and only while somebody waits."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger("onnxpress.api")

INTERVAL_S = 0.1
# After a failed query: the database may be restarting.
BACK_OFF_S = 1.0

Versions = Mapping[str, Hashable]
T = TypeVar("T")


class Change:
    """A change of a row, as all hear of it who wait for it: what all of them ask then is asked once."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, asyncio.Task[Any]] = {}

    async def once(self, question: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """Give what `ask` gives to the first who asks; whoever leaves meanwhile takes the answer from nobody."""
        if question not in self._answers:
            self._answers[question] = asyncio.ensure_future(ask())
        answer: T = await asyncio.shield(self._answers[question])
        return answer


@dataclass(eq=False)
class _Waiter:
    seen: Hashable
    woken: asyncio.Event
    change: Change | None = None


class Watcher:
    """Wakes requests when the row that they wait for changes.

    `read` gives the versions of rows by id; it runs in a thread. A row's version is any value that differs after a change.
    """

    def __init__(self, read: Callable[[Sequence[str]], Versions], interval_s: float = INTERVAL_S) -> None:
        self._read = read
        self._interval_s = interval_s
        self._waiting: dict[str, set[_Waiter]] = {}
        self._somebody = asyncio.Event()
        self.closed = False

    async def wait(self, row: str, seen: Hashable, seconds: float) -> Change | None:
        """Give the change when the row's version is no longer `seen`, None after `seconds`."""
        if self.closed:
            return None
        waiter = _Waiter(seen, asyncio.Event())
        self._waiting.setdefault(row, set()).add(waiter)
        self._somebody.set()
        try:
            async with asyncio.timeout(seconds):
                await waiter.woken.wait()
        except TimeoutError:
            pass
        finally:
            self._leave(row, waiter)
        return waiter.change

    def _leave(self, row: str, waiter: _Waiter) -> None:
        waiters = self._waiting[row]
        waiters.discard(waiter)
        if not waiters:
            del self._waiting[row]
        if not self._waiting:
            self._somebody.clear()

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await self._somebody.wait()
            try:
                versions = await run_sync(self._read, tuple(self._waiting))
            except SQLAlchemyError:
                log.warning("cannot look for changes; trying again", exc_info=True)
                await asyncio.sleep(BACK_OFF_S)
                continue
            self._wake(versions)
            await asyncio.sleep(self._interval_s)

    def _wake(self, versions: Versions) -> None:
        for row, waiters in self._waiting.items():
            change = Change()
            for waiter in waiters:
                # Who came after the query started is not in it, and is served by the next one.
                if row in versions and versions[row] != waiter.seen:
                    waiter.change = change
                    waiter.woken.set()

    def close(self) -> None:
        """Send everybody home with what there is, so that a stopping server need not wait for them."""
        self.closed = True
        for waiters in self._waiting.values():
            last = Change()
            for waiter in waiters:
                waiter.change = last
                waiter.woken.set()
