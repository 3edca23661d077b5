"""Strangers without a key: idle connections by the thousand, some back whenever they are closed, and bodies without end.

What a health check and a client feel of them.
"""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http.server import Api, cpu_s

LOOKS = 200
# Each in processes of their own, so that they cost the one that measures nothing but processors.
IDLE = """
import resource, select, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
held = []

def connect(number):
    link = socket.socket()
    link.bind((f"127.0.{1 + number % int(sys.argv[4])}.1", 0))
    link.connect((host, port))
    held.append(link)

for number in range(count):
    connect(number)
print("ready", flush=True)
# They ask nothing, and whoever is sent away stays away.
select.select([], [], [])
"""
# Whoever is sent away is back after so long.
RETURNING = """
import heapq, resource, select, socket, sys, time
host, port, count, addresses, pause = sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:5]), float(sys.argv[5])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
poll, held, away = select.epoll(), {}, [(0.0, number) for number in range(count)]

def connect(number):
    link = socket.socket()
    link.setblocking(False)
    link.bind((f"127.0.{1 + number % addresses}.1", 0))
    link.connect_ex((host, port))
    held[link.fileno()] = link, number
    poll.register(link, select.EPOLLIN)

told = False
while True:
    while away and away[0][0] <= time.monotonic():
        connect(heapq.heappop(away)[1])
    if not told and not away:
        told = True
        print("ready", flush=True)
    for descriptor, _ in poll.poll(max(0, min(0.05, away[0][0] - time.monotonic())) if away else 0.05):
        link, number = held.pop(descriptor)
        link.close()
        heapq.heappush(away, (time.monotonic() + pause, number))
        if not told:
            told = True
            print("ready", flush=True)
"""
POSTER = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
body = b'{"model": "' + b"x" * (1 << 20) + b'"}'
head = f"POST /v1/jobs HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
print("ready", flush=True)
while True:
    with socket.create_connection((host, port)) as link:
        try:
            link.sendall(head.encode() + body)
            while link.recv(1 << 16):
                pass
        except OSError:
            pass
"""


@dataclass(frozen=True)
class Felt:
    """Milliseconds of /livez and of a look at the models with a key; the server's processor time and its log's bytes, per second."""

    livez_p50_ms: float
    livez_p99_ms: float
    look_p99_ms: float
    cpu: float
    log_bytes_per_s: float


def measure(api: Api, log: Path, idle: int, posters: int) -> dict[str, Felt]:
    """Measure alone, and with each kind of strangers."""
    return {
        "alone": _felt(api, log),
        f"{idle} idle connections of one address": _among(api, log, idle=idle),
        f"{idle} idle connections of 200 addresses": _among(api, log, idle=idle, addresses=200),
        f"{idle} that come back after a second, of one address": _among(api, log, idle=idle, pause_s=1.0),
        f"{idle} that come back at once, of one address": _among(api, log, idle=idle, pause_s=0.0),
        f"{idle} that come back at once, of 200 addresses": _among(api, log, idle=idle, addresses=200, pause_s=0.0),
        f"{posters} keyless posters of 1 MiB": _among(api, log, posters=posters),
        "both": _among(api, log, idle=idle, addresses=200, posters=posters),
    }


def _among(
    api: Api, log: Path, *, idle: int = 0, addresses: int = 1, posters: int = 0, pause_s: float | None = None
) -> Felt:
    host, port = api.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        if idle:
            words = (host, port, str(idle), str(addresses))
            comes_back = () if pause_s is None else (str(pause_s),)
            stack.enter_context(_running(RETURNING if comes_back else IDLE, *words, *comes_back))
        for _ in range(posters):
            stack.enter_context(_running(POSTER, host, port))
        time.sleep(0.5)
        return _felt(api, log)


@contextmanager
def _running(code: str, *words: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None, "the strangers died"
    finally:
        process.kill()
        process.wait()


def _felt(api: Api, log: Path) -> Felt:
    started, used, written = time.monotonic(), cpu_s(api.pid), log.stat().st_size
    healths = [_timed(api, "/livez") for _ in range(LOOKS)]
    looks = [_timed(api, "/v1/models?limit=1") for _ in range(LOOKS // 3)]
    # It is the process that was started, for whoever died and came back has another number.
    os.kill(api.pid, 0)
    spent = time.monotonic() - started
    print(f"/livez p99 {_p99(healths):.1f} ms, a look {_p99(looks):.1f} ms", file=sys.stderr, flush=True)
    return Felt(
        statistics.median(healths),
        _p99(healths),
        _p99(looks),
        (cpu_s(api.pid) - used) / spent,
        (log.stat().st_size - written) / spent,
    )


def _timed(api: Api, path: str) -> float:
    """Give the milliseconds of one request on a connection of its own, as a load balancer's or a new client's."""
    host, port = api.url.removeprefix("http://").split(":")
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nConnection: close\r\n\r\n"
    started = time.perf_counter()
    with socket.create_connection((host, int(port)), timeout=30) as link:
        link.sendall(head.encode())
        answer = link.recv(1 << 16)
        while link.recv(1 << 16):
            pass
    spent = time.perf_counter() - started
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    time.sleep(0.005)
    return 1e3 * spent


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def rows(found: dict[str, dict[str, float]]) -> list[str]:
    """Give the table's lines."""
    lines = [
        "| strangers | /livez p50, ms | /livez p99, ms (at most 100) | GET with a key p99, ms | server's cores | log, kB/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, felt in found.items():
        figures = [f"{felt[key]:.1f}" for key in ("livez_p50_ms", "livez_p99_ms", "look_p99_ms")]
        lines.append(f"| {name} | {' | '.join(figures)} | {felt['cpu']:.2f} | {felt['log_bytes_per_s'] / 1e3:.1f} |")
    return lines
