"""The socket that clients come in by: who is turned away costs a call and no more."""

import errno
import socket
from collections.abc import Sequence
from typing import Any

from api.connections import Connections

# Then those who are in are looked at again.
TURNED_AWAY_AT_ONCE = 128


class Door(socket.socket):
    """A listening socket that closes at once what there is no room for, before asyncio makes a transport and a protocol of it."""

    connections: Connections

    def accept(self) -> tuple[socket.socket, Any]:
        """Give the next connection that is let in; raises BlockingIOError where there is none now."""
        for _ in range(TURNED_AWAY_AT_ONCE):
            connection, address = super().accept()
            if not isinstance(address, tuple) or not self.connections.turns_away(address[0]):
                return connection, address
            connection.close()
        # asyncio comes back as soon as it has looked after the others.
        raise BlockingIOError


def doors(host: str, port: int, connections: Connections) -> Sequence[socket.socket]:
    """Bind every address of this machine that a host's name has; raises OSError where that is none."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            made.append(_bound(Door(family, kind, protocol), address, connections))
        except OSError as error:
            # A name may have an address of a family that this machine does not speak.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
            missing = error
    if not made and missing is not None:
        raise missing
    return made


def _bound(door: Door, address: Any, connections: Connections) -> Door:
    door.connections = connections
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if door.family == socket.AF_INET6:
        # The other family has a socket of its own.
        door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    door.bind(address)
    return door
