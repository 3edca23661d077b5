"""Open connections: how many there are, of whom, and which of them have to make room."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from api.client_address import Proxies

# Beyond the most that is served: room for a health check and for a clean refusal while every connection is busy.
RESERVE = 64
RESERVE_OF_ONE = 16
# Of who has connections waiting already, so many may replace others at once, and so many more each second: of an address that is
# at its limit, and of all such addresses together where everything is taken.
REPLACED_BURST, REPLACED_PER_S = 50, 20.0
ALL = "all"


class Connection(Protocol):
    """What may have to make room."""

    def make_room(self) -> None:
        """Close at once."""


class Connections:
    """The open connections of one process. Only the event loop uses it.

    One without a request under way costs its holder nothing, so that no number of them may keep others out: where there are too
    many, of one address or in all, the one that has waited longest is closed for the new one. Who means to ask does so within
    moments of connecting, and is never the one that has waited longest. A trusted proxy holds connections for many clients, and is
    held to the limit of all.

    Who has connections waiting and comes again and again all the same is turned away at the door, which costs a tenth of that.
    """

    def __init__(
        self, most: int, most_of_one: int, proxies: Proxies, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._proxies = proxies
        self._address: dict[Connection, str] = {}
        self._of: Counter[str] = Counter()
        # In order of how long they wait.
        self._waiting: dict[Connection, None] = {}
        self._waiting_of: dict[str, dict[Connection, None]] = {}
        self._clock = clock
        # Of addresses with connections, and of all: how many more may be replaced, and as of when.
        self._replaceable: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        """Give how many are open."""
        return len(self._address)

    def turns_away(self, address: str) -> bool:
        """Tell whether a new connection of this address is closed before anything is made of it."""
        full = len(self._address) >= self._most
        if not full and not (self._is_limited(address) and self._of[address] >= self._most_of_one):
            return False
        if not self._waiting_of.get(address) or address in self._proxies:
            return False
        whose = ALL if full else address
        now = self._clock()
        left, at = self._replaceable.get(whose, (float(REPLACED_BURST), now))
        left = min(float(REPLACED_BURST), left + (now - at) * REPLACED_PER_S)
        self._replaceable[whose] = (left if left < 1 else left - 1, now)
        return left < 1

    def _is_limited(self, address: str) -> bool:
        return bool(self._most_of_one) and address not in self._proxies

    def opened(self, connection: Connection, address: str) -> bool:
        """Take a new one in; False: there is no room for it even for a refusal."""
        limited = self._is_limited(address)
        if limited and self._of[address] >= self._most_of_one:
            self._close_longest_waiting(self._waiting_of.get(address, {}))
        if len(self._address) >= self._most:
            self._close_longest_waiting(self._waiting)
        if len(self._address) >= self._most + RESERVE:
            return False
        if limited and self._of[address] >= self._most_of_one + RESERVE_OF_ONE:
            return False
        self._address[connection] = address
        self._of[address] += 1
        self.waits(connection)
        return True

    def waits(self, connection: Connection) -> None:
        """Note that a connection has no request under way from now on."""
        address = self._address.get(connection)
        if address is not None:
            self._waiting.setdefault(connection)
            self._waiting_of.setdefault(address, {}).setdefault(connection)

    def is_busy(self, connection: Connection) -> None:
        """Note that a connection has a request under way."""
        self._waiting.pop(connection, None)
        address = self._address.get(connection)
        if address in self._waiting_of:
            self._waiting_of[address].pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.is_busy(connection)
        address = self._address.pop(connection, None)
        if address is None:
            return
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]
            self._waiting_of.pop(address, None)
            self._replaceable.pop(address, None)

    def _close_longest_waiting(self, waiting: dict[Connection, None]) -> None:
        longest = next(iter(waiting), None)
        if longest is not None:
            self.closed(longest)
            longest.make_room()
