"""The socket that clients come in by: who is turned away costs a few calls, and comes back no sooner than a moment later."""

import asyncio
import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from api.connections import Connections

# Then those who are in are looked at again.
TURNED_AWAY_AT_ONCE = 128
# How long who is turned away stays at the door, and how many at most; whoever comes then sends the first of them away.
HELD_S, MOST_HELD = 2.0, 4096
# Before as many more are closed, others have their turn.
_CLOSED_AT_ONCE, _NEXT_S = 64, 0.005
# Nothing of it stays with the system, as the last word of a connection that is closed here first would for a minute.
_ENDS_AT_ONCE = struct.pack("ii", 1, 0)


class TurnedAway:
    """Connections that nothing is made of, held for a moment before they are closed. Only the event loop uses it.

    Who was closed at once would be back at once: a thousand such strangers took all of a process. One that is let wait costs a
    descriptor meanwhile, and nothing else.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # With when each is closed; the first to come is the first to go.
        self._held: deque[tuple[float, socket.socket]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Give how many are held."""
        return len(self._held)

    def hold(self, connection: socket.socket) -> None:
        """Close it later, or the one that was held longest where there are too many."""
        self._held.append((time.monotonic() + HELD_S, connection))
        if len(self._held) > self._most:
            self._close_first()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HELD_S, self._close_due)

    def close(self) -> None:
        """Close all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._held:
            self._close_first()

    def _close_due(self) -> None:
        now = time.monotonic()
        for _ in range(_CLOSED_AT_ONCE):
            if not self._held or self._held[0][0] > now:
                break
            self._close_first()
        pause = max(_NEXT_S, self._held[0][0] - now) if self._held else None
        self._timer = None if pause is None else asyncio.get_running_loop().call_later(pause, self._close_due)

    def _close_first(self) -> None:
        _, connection = self._held.popleft()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ENDS_AT_ONCE)
        connection.close()


class Door(socket.socket):
    """A listening socket that keeps what there is no room for from asyncio, which would make a transport and a protocol of it."""

    connections: Connections
    turned_away: TurnedAway

    def accept(self) -> tuple[socket.socket, Any]:
        """Give the next connection that is let in; raises BlockingIOError where there is none now."""
        for _ in range(TURNED_AWAY_AT_ONCE):
            connection, address = super().accept()
            if not isinstance(address, tuple) or not self.connections.turns_away(address[0]):
                return connection, address
            self.turned_away.hold(connection)
        # asyncio comes back as soon as it has looked after the others.
        raise BlockingIOError


def doors(host: str, port: int, connections: Connections, turned_away: TurnedAway) -> Sequence[socket.socket]:
    """Bind every address of this machine that a host's name has; raises OSError where that is none."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            door = _bound(Door(family, kind, protocol), address)
        except OSError as error:
            # A name may have an address of a family that this machine does not speak.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
            missing = error
        else:
            door.connections, door.turned_away = connections, turned_away
            made.append(door)
    if not made and missing is not None:
        raise missing
    return made


def _bound(door: Door, address: Any) -> Door:
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if door.family == socket.AF_INET6:
        # The other family has a socket of its own.
        door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    door.bind(address)
    return door
