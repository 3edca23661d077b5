"""One attempt: a POST to an address that was looked at, over in five seconds, of which nothing but the status is read.

Written on sockets, because what is promised of it is about connections: the address that is connected to is the one that
was looked at, no redirect is followed, no proxy is asked, and no answer is long enough to hold anybody up.
"""

import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from services.webhooks.addresses import Policy, Resolve, port_of

Result = Literal[
    "delivered",
    "refused",
    "redirected",
    "gone",
    "address_refused",
    "not_resolved",
    "not_connected",
    "tls_failed",
    "timed_out",
    "not_http",
]
SECONDS = 5.0
_HEAD_LIMIT = 16 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt; the answer's status where there was one."""

    result: Result
    status: int | None
    seconds: float

    @property
    def delivered(self) -> bool:
        """Whether the receiver has it."""
        return self.result == "delivered"


class _FailedError(Exception):
    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result: Result = result


def resolve(host: str, port: int) -> list[str]:
    """Give the addresses of a name, as the system knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Sender:
    """Whoever makes the attempts; `resolve` gives the addresses of a name."""

    def __init__(
        self, policy: Policy, tls: ssl.SSLContext | None = None, *, resolve: Resolve = resolve, seconds: float = SECONDS
    ) -> None:
        self._policy = policy
        self._tls = tls or ssl.create_default_context()
        self._resolve = resolve
        self._seconds = seconds

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send once; whatever happens is an outcome."""
        started = time.monotonic()
        status = None
        try:
            status = self._exchange(urlsplit(url), headers, body, started + self._seconds)
            result = _result(status)
        except _FailedError as error:
            result = error.result
        except TimeoutError:
            result = "timed_out"
        except ssl.SSLError:
            result = "tls_failed"
        except OSError:
            result = "not_connected"
        return Outcome(result, status, round(time.monotonic() - started, 3))

    def _exchange(self, parts: SplitResult, headers: Mapping[str, str], body: bytes, end: float) -> int:
        connection = self._connect(parts, end)
        try:
            if parts.scheme == "https":
                connection.settimeout(_left(end))
                connection = self._tls.wrap_socket(connection, server_hostname=parts.hostname)
            connection.settimeout(_left(end))
            connection.sendall(_message(parts, headers, body))
            return _read_status(connection, end)
        finally:
            connection.close()

    def _connect(self, parts: SplitResult, end: float) -> socket.socket:
        assert parts.hostname is not None
        addresses = self._resolved(parts.hostname, port_of(parts), end)
        # Nothing is asked of the resolver again: these, and no others, are connected to.
        allowed = [one for one in addresses if self._policy.allows(one, encrypted=parts.scheme == "https")]
        if addresses and not allowed:
            raise _FailedError("address_refused")
        failure: OSError = OSError("no address")
        for address in allowed:
            try:
                return socket.create_connection((address, port_of(parts)), timeout=_left(end))
            except TimeoutError:
                raise
            except OSError as error:
                failure = error
        raise failure

    def _resolved(self, host: str, port: int, end: float) -> list[str]:
        """Ask the resolver in a thread of its own: it has no limit of time."""
        found: list[str] = []
        failed: list[Exception] = []

        def ask() -> None:
            try:
                found.extend(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                failed.append(error)

        thread = threading.Thread(target=ask, name="webhook resolver", daemon=True)
        thread.start()
        thread.join(_left(end))
        if thread.is_alive():
            raise TimeoutError
        if failed or not found:
            raise _FailedError("not_resolved")
        return found


def _result(status: int) -> Result:
    if status == 410:
        return "gone"
    kinds: dict[int, Result] = {2: "delivered", 3: "redirected"}
    return kinds.get(status // 100, "refused")


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _message(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    told = {
        "Host": parts.netloc,
        "User-Agent": f"onnxpress/{metadata.version('onnxpress-server')}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **headers,
    }
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def _read_status(connection: socket.socket, end: float) -> int:
    """Read the head of the answer as far as its status; heads that only announce one are passed over."""
    head = b""
    while True:
        found = _STATUS.match(head)
        if found and found[1][:1] != b"1":
            return int(found[1])
        if found and b"\r\n\r\n" in head:
            head = head.partition(b"\r\n\r\n")[2]
            continue
        connection.settimeout(_left(end))
        more = connection.recv(4096)
        head += more
        if not more or len(head) > _HEAD_LIMIT:
            raise _FailedError("not_http")
