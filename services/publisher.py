"""Sends the message [unit_id] of a unit in the form that the workers' queue library reads (Celery's protocol 2)."""

import logging
import os
import ssl
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.messaging import Producer
from redis.exceptions import RedisError, ResponseError

from settings import Settings

_log = logging.getLogger(__name__)
TASK = "worker.run_unit"
# A client's request waits for this: better a message late than an answer late.
_TIMEOUT_S = 1.5
# After a failure nobody tries for so long; the reconciler sends later what was not sent.
_PAUSE_S = 1.0


class BrokerPublisher:
    """Publishes to a Redis-protocol broker, safe to share between threads; every process opens a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._pid = os.getpid()
        self._paused_until = 0.0

    def publish(self, queue: str, unit_id: str) -> bool:
        """Send once, and tell whether the broker took it. A failure is logged, never raised."""
        return bool(self._asked(lambda connection: _send(connection, queue, unit_id), default=False))

    def waiting(self, queue: str) -> int | None:
        """Give the number of messages that wait in a queue, None where the broker does not answer."""

        def count(connection: Connection) -> int:
            channel: Any = connection.default_channel
            return int(channel.client.llen(queue))

        found = self._asked(count, default=None)
        return None if found is None else int(found)

    def answers(self) -> bool:
        """Tell whether the broker can be reached."""
        return self.waiting("work") is not None

    def probe(self) -> dict[str, Any] | None:
        """Have a message go there and back, and give what the broker says of itself; None where it does not answer."""

        def there_and_back(connection: Connection) -> dict[str, Any]:
            channel: Any = connection.default_channel
            name = f"probe.{uuid.uuid4()}"
            channel.client.lpush(name, "x")
            if channel.client.rpop(name) != b"x":
                raise OperationalError("another message came back")
            try:
                return dict(channel.client.info())
            except ResponseError:
                # An access list may keep that from us.
                return {}

        found = self._asked(there_and_back, default=None)
        return None if found is None else dict(found)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _asked(self, action: Any, *, default: Any) -> Any:
        with self._lock:
            if self._pid != os.getpid():
                # The connection belongs to the process that forked us.
                self._connection, self._pid, self._paused_until = None, os.getpid(), 0.0
            if time.monotonic() < self._paused_until:
                return default
            try:
                if self._connection is None:
                    self._connection = _connect(self._settings)
                return action(self._connection)
            except (OperationalError, RedisError, OSError) as error:
                _log.warning("broker not reached: %s", type(error).__name__)
                self._drop()
                self._paused_until = time.monotonic() + _PAUSE_S
                return default

    def _drop(self) -> None:
        dropped, self._connection = self._connection, None
        if dropped is not None:
            # kombu asks a broker that is away once more before it lets go of it.
            with suppress(OperationalError, RedisError, OSError):
                dropped.release()


def tls(settings: Settings) -> dict[str, Any] | None:
    """Give how a `rediss://` broker is spoken to, None for one without TLS: its certificate is always checked."""
    if not settings.broker.startswith("rediss://"):
        return None
    files = {
        "ssl_ca_certs": settings.broker_ca_file,
        "ssl_certfile": settings.broker_cert_file,
        "ssl_keyfile": settings.broker_key_file,
    }
    named = {name: str(path) for name, path in files.items() if path is not None}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **named}


def prefix(settings: Settings) -> dict[str, str]:
    """Give the transport's option that keeps installations apart."""
    return {"global_keyprefix": settings.broker_prefix} if settings.broker_prefix else {}


def _connect(settings: Settings) -> Connection:
    options = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S, "max_retries": 0, **prefix(settings)}
    return Connection(
        settings.broker, connect_timeout=_TIMEOUT_S, transport_options=options, ssl=tls(settings) or False
    )


def _send(connection: Connection, queue: str, unit_id: str) -> bool:
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": f"[{unit_id}]",
        "kwargsrepr": "{}",
        "ignore_result": True,
    }
    body = [[unit_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    # No exchange: the broker's default one routes by the queue's name, and no declaration is needed that could get lost.
    Producer(connection.default_channel, auto_declare=False).publish(
        body, exchange="", routing_key=queue, serializer="json", headers=headers, correlation_id=task_id, retry=False
    )
    return True
