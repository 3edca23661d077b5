"""How many requests are answered at the same time, and how many of one address."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.errors import ApiError

HEALTH = frozenset({"/livez", "/readyz"})


class Admission:
    """Counts the requests under way. Only the event loop uses it.

    Health routes are neither counted nor refused: the load balancer that asks must not be told that a busy process is dead.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one or most
        self._under_way: Counter[str] = Counter()
        self.total = 0

    @contextmanager
    def admitted(self, path: str, client: str) -> Iterator[None]:
        """Have a request counted in the block; raises 503 or 429 where there are too many."""
        if path in HEALTH:
            yield
            return
        if self.total >= self._most:
            raise ApiError(503, "The service answers as many requests as it can right now; try again.")
        if self._under_way[client] >= self._most_of_one:
            raise ApiError(
                429,
                f"This address has {self._most_of_one} requests under way, which is the limit.",
                code="too_many_requests",
            )
        self._under_way[client] += 1
        self.total += 1
        try:
            yield
        finally:
            self.total -= 1
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]
