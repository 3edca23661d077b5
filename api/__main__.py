"""`python -m api`: the HTTP edge under uvicorn."""

import ctypes
import gc
import ipaddress
import platform
import resource
import socket
import sys
from functools import partial

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.connections import RESERVE, Connections
from api.door import MOST_HELD, TurnedAway, doors
from api.uvicorn_protocol import Protocol
from services import db, logs
from services.server_secret import SecretError, open_server_secret
from settings import Settings, get_settings
from settings.private_folder import keep_private

# A request line and its headers. httptools, uvicorn's other parser, would take 20 MB.
MAX_HEADER_BYTES = 32 << 10
KEEP_ALIVE_S = 75
STOP_S = 10
# Connections that are taken in before those that are open are looked at again; and as many more as the system holds in front of the door.
ACCEPTED_AT_ONCE, BACKLOG = 32, 2048
# Descriptors beside those of connections: the database's, logs, libraries.
FILES = 512

# mallopt's names for what is given back to the system, and for what is asked of it piece by piece (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class Server(uvicorn.Server):
    """uvicorn that sends long polls home before it waits for open connections."""

    def __init__(self, app: FastAPI, settings: Settings, *, port: int | None = None) -> None:
        self._connections = Connections(
            settings.max_connections, settings.max_connections_per_address, app.state.proxies
        )
        self._turned_away = TurnedAway(_files_left(settings.max_connections))
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port if port is None else port,
                # uvicorn only calls it.
                http=partial(Protocol, connections=self._connections),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                backlog=_accepted_at_once(settings),
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_S,
                # Who the client is may be told by a proxy only where an operator says so.
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
            )
        )
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving. asyncio has one number for both, so that the system is told the other one afterwards."""
        if sockets is None:
            try:
                sockets = list(doors(self.config.host, self.config.port, self._connections, self._turned_away))
            except OSError as error:
                sys.exit(f"onnxpress: cannot serve on {self.config.host}, port {self.config.port}: {error}")
        await super().startup(sockets)
        for listener in sockets:
            listener.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._app.state.watcher.close()
        await super().shutdown(sockets)
        self._turned_away.close()


def refuse_unless_private(host: str, *, authenticated: bool) -> None:
    """Exit rather than offer an open service to a network."""
    if authenticated or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    sys.exit(f"onnxpress: refusing to serve on {host} without authentication; bind 127.0.0.1")


def _accepted_at_once(settings: Settings) -> int:
    """Give so few that those taken in together do not make each other's room: who has just come is heard before it has to go."""
    room = min(settings.max_connections, settings.max_connections_per_address or settings.max_connections)
    return max(1, min(ACCEPTED_AT_ONCE, room // 8))


def _allow_files(connections: int) -> None:
    """Have as many descriptors as the connections may take, each with a file, and those at the door, where the system lets us."""
    wanted = _files(connections) + MOST_HELD
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _files_left(connections: int) -> int:
    """Give how many descriptors are left for who is turned away."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_HELD if soft == resource.RLIM_INFINITY else max(0, min(MOST_HELD, soft - _files(connections)))


def _files(connections: int) -> int:
    return 2 * (connections + RESERVE) + FILES


def _keep_memory() -> None:
    """Have glibc use the memory of one piece of a body for the next one.

    By default each piece of a megabyte comes from the system and goes back to it: 256 page faults, a fifth of what an upload
    costs. What is kept is at most the first threshold.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_TRIM_THRESHOLD, 16 << 20)
    library.mallopt(_M_MMAP_THRESHOLD, 8 << 20)


def main() -> None:
    """Serve until told to stop."""
    keep_private()
    _keep_memory()
    settings = get_settings()
    logs.configure(settings)
    _allow_files(settings.max_connections)
    # Keys are always asked for; the check stands for the day when they may be switched off.
    refuse_unless_private(settings.host, authenticated=True)
    try:
        db.check_revision(settings)
        open_server_secret(settings)
    except (db.RevisionError, SecretError) as error:
        sys.exit(f"onnxpress: {error}")
    server = Server(create_app(settings), settings)
    # What is loaded by now stays: no request need wait for a collector that goes through all of it.
    gc.freeze()
    server.run()


if __name__ == "__main__":
    main()
