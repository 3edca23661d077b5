"""HTTP/1.1 as uvicorn and h11 speak it, but for long bodies: their bytes are handed on as they came."""

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

# What is read from a connection at once.
READ_BYTES = 2 << 20


class Protocol(H11Protocol):
    """uvicorn's protocol without the parser's copies of a body.

    h11 copies each piece of a body three times, which is most of what an upload costs. While a body of known length is
    under way nothing in it can mean anything to the parser, so that only its count of what is left has to be kept. Heads,
    chunked bodies and the last piece of every body go to h11, and so does everything that is not plain.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a new connection."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        # Neither has a public name; tests hold every kind of body against what h11 alone makes of it.
        connection = cast("Any", self.conn)
        reader = connection._reader  # noqa: SLF001
        plain = (
            self.cycle is not None
            and connection.their_state is h11.SEND_BODY
            and connection.our_state is not h11.DONE
            and not connection._receive_buffer  # noqa: SLF001
            and len(data) < getattr(reader, "_remaining", 0)
        )
        if not plain:
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        reader._remaining -= len(data)  # noqa: SLF001
        # Nothing plus a piece is the piece itself: only a slow application makes this a copy.
        self.cycle.body += data
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()
