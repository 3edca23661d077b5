"""Sends the message [unit_id] of a unit in the form that the workers' queue library reads (Celery's protocol 2)."""

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.messaging import Producer
from redis.exceptions import RedisError

_log = logging.getLogger(__name__)
TASK = "worker.run_unit"
# A client's request waits for this: better a message late than an answer late.
_TIMEOUT_S = 1.5
# After a failure nobody tries for so long; the reconciler sends later what was not sent.
_PAUSE_S = 1.0


class BrokerPublisher:
    """Publishes to a Redis-protocol broker, safe to share between threads; every process opens a connection of its own."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
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
                    self._connection = _connect(self._url)
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


def _connect(url: str) -> Connection:
    options = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S, "max_retries": 0}
    return Connection(url, connect_timeout=_TIMEOUT_S, transport_options=options)


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
