"""The real API in a process of its own, without workers, and what it costs."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services import db, keys
from settings import Settings

TENANT = "default"
TICKS = os.sysconf("SC_CLK_TCK")
BARE = """
import sys
from fastapi import FastAPI
import uvicorn
app = FastAPI()

@app.get("/")
async def bare():
    return {"status": "queued"}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), http="h11", log_level="error", access_log=False)
"""


@dataclass(frozen=True)
class Api:
    """A running server."""

    url: str
    pid: int
    key: str
    settings: Settings

    @property
    def headers(self) -> dict[str, str]:
        """Open the service."""
        return {"Authorization": f"Bearer {self.key}"}

    def client(self) -> httpx.Client:
        """Give a client with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=120, trust_env=False)


def cpu_s(pid: int) -> float:
    """Give the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid: int, field: str = "VmRSS") -> int:
    """Give a process' resident memory, or its peak (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def forget_peak(pid: int) -> None:
    """Let the peak of a process' memory begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def free_port() -> int:
    """Give a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path) -> Iterator[Api]:
    """Serve with the data in `folder` until the end of the block."""
    settings = Settings(data_dir=folder, rate_per_s=0)
    db.upgrade(settings)
    database = db.Database.from_settings(settings)
    with database.transaction() as session:
        keys.ensure_tenant(session, TENANT)
        key = keys.create(session, TENANT, "benchmark", keys.SCOPES).text
    database.dispose()
    port = free_port()
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(folder), "ONNXPRESS_PORT": str(port), "ONNXPRESS_RATE_PER_S": "0"}
    # The access log is part of what a request costs; where it goes to is not.
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api"], env=env, stdout=log, stderr=log)
    try:
        yield Api(_ready(f"http://127.0.0.1:{port}", "/livez", process), process.pid, str(key), settings)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def bare() -> Iterator[str]:
    """Serve one bare `async def` route in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port)], stderr=subprocess.DEVNULL)
    try:
        yield _ready(f"http://127.0.0.1:{port}", "/", process)
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str, path: str, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 60
    while True:
        try:
            httpx.get(url + path, trust_env=False)
        except httpx.TransportError:
            assert process.poll() is None, "the server died at its start"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
        else:
            return url
