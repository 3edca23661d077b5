"""Many who wait for the same job: long polls and event streams at once, and what a health check feels of it."""

import asyncio
import time
from dataclasses import dataclass

from benchmarks.http.jobs import new_job
from benchmarks.http.server import Api


@dataclass(frozen=True)
class Heard:
    """When the last of them saw the end, after it came; and the health check's 99th percentile meanwhile."""

    last_s: float
    clients: int
    livez_p99_ms: float


def measure(api: Api, model: str, polls: int, streams: int) -> Heard:
    """Have them wait, cancel the job, and see when they know."""
    with api.client() as client:
        job = new_job(client, model)
    return asyncio.run(_measure(api, job, polls, streams))


async def _measure(api: Api, job: str, polls: int, streams: int) -> Heard:
    # Bare sockets: a pool of hundreds of connections would cost the client more than they cost the server.
    ways = [(f"/v1/jobs/{job}?wait=60", b'"status":"cancelled"')] * polls
    ways += [(f"/v1/jobs/{job}/events", b"event: cancelled")] * streams
    waiting = [asyncio.create_task(_wait(api, path, end)) for path, end in ways]
    await asyncio.sleep(3)
    assert not any(task.done() for task in waiting)
    times = [await _livez(api) for _ in range(300)]
    changed = time.monotonic()
    assert b'"status":"cancelled"' in await _ask(api, f"/v1/jobs/{job}:cancel", "POST")
    ends = await asyncio.gather(*waiting)
    return Heard(max(ends) - changed, len(ends), 1e3 * sorted(times)[int(0.99 * len(times))])


async def _wait(api: Api, path: str, end: bytes) -> float:
    answer = await _ask(api, path)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    assert end in answer
    return time.monotonic()


async def _livez(api: Api) -> float:
    started = time.monotonic()
    assert b"ok" in await _ask(api, "/livez")
    spent = time.monotonic() - started
    await asyncio.sleep(0.005)
    return spent


async def _ask(api: Api, path: str, method: str = "GET") -> bytes:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    key = f"Authorization: Bearer {api.key}\r\n"
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{key}{length}Connection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer
