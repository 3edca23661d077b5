"""A long upload and download: processor time beside sha256 and a write of the same bytes, and memory."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http.server import Api, cpu_s, forget_peak, rss_bytes

CHUNK = 1 << 20
ROUNDS = 3
# In a process of its own, like the server's: `python -c PLAIN FILE TARGET` prints its processor time.
PLAIN = """
import hashlib, os, sys, time
sha256 = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb", buffering=0) as target:
    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    spent = 0.0
    while data := source.read(1 << 20):
        started = time.process_time()
        sha256.update(data)
        target.write(data)
        spent += time.process_time() - started
    started = time.process_time()
    os.fsync(target.fileno())
    spent += time.process_time() - started
print(spent)
"""


@dataclass(frozen=True)
class Cost:
    """What one transfer cost the server, and what the plain work costs."""

    cpu_s: float
    plain_cpu_s: float
    extra_rss_bytes: int

    @property
    def ratio(self) -> float:
        """How many times the plain work."""
        return self.cpu_s / self.plain_cpu_s


def measure(api: Api, folder: Path, size: int) -> tuple[Cost, Cost]:
    """Give the cost of an upload and of a download."""
    source = folder / "source.bin"
    with source.open("wb") as file:
        block = os.urandom(CHUNK)
        for number in range(size // CHUNK):
            file.write(number.to_bytes(8, "little") + block[8:])
    sha256 = hashlib.file_digest(source.open("rb"), "sha256").hexdigest()
    with api.client() as client:
        client.get("/v1/models").raise_for_status()
    plains, ups, downs = [], [], []
    for _ in range(ROUNDS):
        _fresh_memory(folder, size)
        plains.append(_plain(source, folder))
        _fresh_memory(folder, size)
        ups.append(_cost(api, lambda: _upload(api, source, size)))
        downs.append(_cost(api, lambda: _download(api, sha256, size)))
    source.unlink()
    return _least(ups, min(plains)), _least(downs, min(plains))


def _fresh_memory(folder: Path, size: int) -> None:
    """Have free memory that was used before: on a virtual machine the first use of a page costs more than what is measured."""
    scratch = folder / "scratch.bin"
    with scratch.open("wb") as file:
        for _ in range(size // CHUNK):
            file.write(bytes(CHUNK))
    scratch.unlink()


def _least(costs: list[tuple[float, int]], plain: float) -> Cost:
    """Take the least of all rounds, as for the plain work: writing also pays for what others left to be written back."""
    return Cost(min(cpu for cpu, _ in costs), plain, max(extra for _, extra in costs))


def _plain(source: Path, folder: Path) -> float:
    target = folder / "copy.bin"
    os.sync()
    done = subprocess.run([sys.executable, "-c", PLAIN, source, target], capture_output=True, text=True, check=True)
    target.unlink()
    return float(done.stdout)


def _cost(api: Api, transfer: Callable[[], None]) -> tuple[float, int]:
    """Give a transfer's processor time and how much more memory there was at its peak."""
    os.sync()
    forget_peak(api.pid)
    before, used = rss_bytes(api.pid), cpu_s(api.pid)
    transfer()
    return cpu_s(api.pid) - used, rss_bytes(api.pid, "VmHWM") - before


def _open(api: Api) -> socket.socket:
    host, port = api.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=600)


def _upload(api: Api, source: Path, size: int) -> None:
    head = (
        f"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    )
    with _open(api) as link, source.open("rb") as file:
        link.sendall(head.encode())
        link.sendfile(file)
        answer = link.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 201"), answer[:500]


def _download(api: Api, sha256: str, size: int) -> None:
    head = f"GET /v1/artifacts/{sha256} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nConnection: close\r\n\r\n"
    with _open(api) as link:
        link.sendall(head.encode())
        got, start = 0, link.recv(1 << 16)
        body = start.index(b"\r\n\r\n") + 4
        assert start.startswith(b"HTTP/1.1 200"), start[:500]
        got = len(start) - body
        buffer = bytearray(CHUNK)
        while count := link.recv_into(buffer):
            got += count
    assert got == size
