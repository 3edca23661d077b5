"""HTTP/1.1 as uvicorn and h11 speak it, within limits of time and number, and with long bodies handed on as they came."""

import asyncio
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.connections import Connections
from api.errors import problem_response, status_problem
from api.security_headers import security_headers

# What is read from a connection at once: of a body that somebody waits for, and before it is known whether anybody does.
READ_BYTES = 2 << 20
HEAD_READ_BYTES = 64 << 10
# A request's head has to be there so soon after the connection, or after its first byte.
HEAD_S = 10.0
# Of an answer, this much has to be taken in this time.
TAKEN_BYTES, TAKEN_S = 30 << 10, 30.0
# A refusal that comes before the body has: so long, and so many bytes, the client may go on sending before the connection ends.
LINGER_S, LINGER_BYTES = 2.0, 64 << 20


class Protocol(H11Protocol):
    """uvicorn's protocol with limits, and without the parser's copies of a body.

    A connection that has no request under way may be closed for a new one (Connections). A head that is late is answered with
    408. A reader that takes next to nothing is cut off. Where an answer is complete before its request's body, the rest is
    thrown away unseen, for a while: who closes at once may have the answer lost on its way.

    h11 copies each piece of a body three times, which is most of what an upload costs. While a body of known length is
    under way nothing in it can mean anything to the parser, so that only its count of what is left has to be kept. Heads,
    chunked bodies and the last piece of every body go to h11, and so does everything that is not plain.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._open = connections
        self._socket: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._lingers = False
        self._thrown_away = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a new connection."""
        self._socket = transport
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self)))
        self._read_at_once(HEAD_READ_BYTES)
        if self._open.opened(self, self.client[0] if self.client else ""):
            self._await_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._open.closed(self)
        self._stop_waiting()
        self._stop_watching_writes()
        # There is nobody left to wait for.
        self._lingers = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._lingers:
            self._thrown_away += len(data)
            if self._thrown_away > LINGER_BYTES:
                self.make_room()
            return
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
            self._follow()
            return
        self._unset_keepalive_if_required()
        self._read_at_once(READ_BYTES)
        reader._remaining -= len(data)  # noqa: SLF001
        # Nothing plus a piece is the piece itself: only a slow application makes this a copy.
        self.cycle.body += data
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on to the next request, or end the connection where this one's body is still on its way."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        super().on_response_complete()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        del msg
        self._refuse(400)

    def pause_writing(self) -> None:
        """Have nothing more written until the client has taken what there is, and see to it that it does."""
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        """Write on."""
        self._stop_watching_writes()
        super().resume_writing()

    def make_room(self) -> None:
        """Close at once."""
        if self._socket is not None:
            self._socket.abort()

    def end(self) -> None:
        """Close when the client has had time to read the answer, where it has not yet sent everything."""
        assert self._socket is not None
        if self._lingers:
            return
        if self.conn.their_state not in {h11.SEND_BODY, h11.ERROR} or not self._socket.can_write_eof():
            # Whoever leaves does not count as one who waits: the next connection of the same address may be here already.
            self._open.closed(self)
            self._socket.close()
            return
        self._lingers = True
        self._open.waits(self)
        self._stop_waiting()
        self._timer = self.loop.call_later(LINGER_S, self.make_room)
        self._read_at_once(READ_BYTES)
        self._socket.write_eof()
        self._socket.resume_reading()

    @property
    def lingers(self) -> bool:
        """Whether everything is said and the client may only end."""
        return self._lingers

    def _follow(self) -> None:
        """Note whether a request is under way now, and wait for the next one's head where none is."""
        if self._lingers:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._open.is_busy(self)
            self._stop_waiting()
            return
        self._open.waits(self)
        self._read_at_once(HEAD_READ_BYTES)
        # uvicorn's own timer runs until the first byte of the next request.
        if self._timer is None and self.conn.trailing_data[0]:
            self._await_head()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0]:
            self._refuse(408)
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int) -> None:
        """Answer without the application, for it has no request to be asked with; and end the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.make_room()
            return
        answer = problem_response(status_problem(status))
        guards = [
            (name.lower().encode(), value.encode()) for name, value in security_headers(answer.media_type or "").items()
        ]
        headers = [*self.server_state.default_headers, *answer.raw_headers, *guards, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_writes(self) -> None:
        assert self._socket is not None
        left = self._socket.get_write_buffer_size()
        self._write_timer = self.loop.call_later(TAKEN_S, self._check_writes, left)

    def _check_writes(self, before: int) -> None:
        assert self._socket is not None
        if before - self._socket.get_write_buffer_size() < TAKEN_BYTES:
            self.make_room()
        else:
            self._watch_writes()

    def _stop_watching_writes(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _read_at_once(self, count: int) -> None:
        if hasattr(self._socket, "max_size"):
            self._socket.max_size = count  # type: ignore[union-attr]  # asyncio's own has it


class _Lingering:
    """A transport that is closed as the protocol closes it: uvicorn closes before its client has read why."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close when the client had its time."""
        self._protocol.end()

    def is_closing(self) -> bool:
        """Tell whether nothing more is said."""
        return self._protocol.lingers or self._transport.is_closing()
