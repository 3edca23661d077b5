"""Work that is done beside other work, a little ahead of its use."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

_Done = TypeVar("_Done")


class Ahead(Generic[_Done]):
    """One thread that prepares what is needed next, by a key; with `beside` false all is done when it is needed."""

    def __init__(self, *, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._coming: dict[object, Future[_Done]] = {}

    def prepare(self, key: object, work: Callable[[], _Done]) -> None:
        """Begin with something that is needed soon; of what was not taken, only the last one before it is kept."""
        if self._pool is None or key in self._coming:
            return
        for older in list(self._coming)[:-1]:
            self._coming.pop(older).cancel()
        self._coming[key] = self._pool.submit(work)

    def take(self, key: object, work: Callable[[], _Done]) -> _Done:
        """Give what was prepared, or do it now; raises what the work raised."""
        found = self._coming.pop(key, None)
        return work() if found is None else found.result()

    def wait(self) -> None:
        """Return when nothing is being done."""
        wait(self._coming.values())

    def forget(self) -> None:
        """Let go of all that was prepared."""
        self.wait()
        self._coming.clear()
