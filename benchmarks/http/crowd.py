"""Many who wait for the same job: long polls and event streams at once, and what a health check feels of it."""

import asyncio
import time
from dataclasses import dataclass

import httpx

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
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=api.url, headers=api.headers, limits=limits, timeout=120, trust_env=False
    ) as client:
        waiting = [asyncio.create_task(_poll(client, job)) for _ in range(polls)]
        waiting += [asyncio.create_task(_stream(client, job)) for _ in range(streams)]
        await asyncio.sleep(3)
        assert not any(task.done() for task in waiting)
        times = [await _livez(client) for _ in range(300)]
        changed = time.monotonic()
        (await client.post(f"/v1/jobs/{job}:cancel")).raise_for_status()
        ends = await asyncio.gather(*waiting)
    return Heard(max(ends) - changed, len(ends), 1e3 * sorted(times)[int(0.99 * len(times))])


async def _poll(client: httpx.AsyncClient, job: str) -> float:
    answer = await client.get(f"/v1/jobs/{job}?wait=60")
    assert answer.json()["status"] == "cancelled"
    return time.monotonic()


async def _stream(client: httpx.AsyncClient, job: str) -> float:
    async with client.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = [line async for line in answer.aiter_lines()]
    assert "event: cancelled" in lines
    return time.monotonic()


async def _livez(client: httpx.AsyncClient) -> float:
    started = time.monotonic()
    (await client.get("/livez")).raise_for_status()
    await asyncio.sleep(0.005)
    return time.monotonic() - started - 0.005
