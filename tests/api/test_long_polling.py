"""Long polling asks once for all who wait, and not at all when nobody does."""

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from api import long_polling
from api.long_polling import Watcher

PATIENCE_S = 60.0


class Rows:
    def __init__(self):
        self.versions = {}
        self.asked = []
        self.failing = 0

    def __call__(self, ids):
        self.asked.append(set(ids))
        if self.failing:
            self.failing -= 1
            raise OperationalError("SELECT", {}, Exception("away"))
        return {one: self.versions[one] for one in ids if one in self.versions}


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


def scene(play):
    async def run():
        rows = Rows()
        watcher = Watcher(rows, interval_s=0.02)
        task = asyncio.create_task(watcher.run())
        try:
            await play(rows, watcher)
        finally:
            task.cancel()

    asyncio.run(run())


def test_nobody_waits_nobody_asks():
    async def play(rows, watcher):
        await asyncio.sleep(0.1)
        assert rows.asked == []
        rows.versions["a"] = "1"
        await watcher.wait("a", "1", 0.1)
        asked = len(rows.asked)
        await asyncio.sleep(0.1)
        assert len(rows.asked) <= asked + 1

    scene(play)


def test_many_who_wait_are_one_question():
    async def play(rows, watcher):
        rows.versions |= {"a": "1", "b": "1"}
        waits = [asyncio.create_task(watcher.wait(one, "1", 2 * PATIENCE_S)) for one in "ab" for _ in range(100)]
        await until(lambda: len(rows.asked) >= 3)
        assert {frozenset(asked) for asked in rows.asked} == {frozenset("ab")}
        rows.versions["a"] = "2"
        await asyncio.wait(waits[:100], timeout=PATIENCE_S)
        assert all(wait.done() for wait in waits[:100])
        assert not any(wait.done() for wait in waits[100:])
        rows.versions["b"] = "2"
        await asyncio.wait(waits, timeout=PATIENCE_S)
        assert all(wait.done() for wait in waits)

    scene(play)


def test_what_they_ask_then_is_asked_once():
    async def play(rows, watcher):
        rows.versions["a"] = "1"
        asked, begun, left = [], asyncio.Event(), asyncio.Event()

        async def ask(question):
            asked.append(question)
            begun.set()
            await left.wait()
            if question == "wrong":
                raise ValueError(question)
            return len(asked)

        async def hear(question):
            change = await watcher.wait("a", "1", 2 * PATIENCE_S)
            return await change.once(question, lambda: ask(question))

        right = [asyncio.create_task(hear("right")) for _ in range(50)]
        wrong = [asyncio.create_task(hear("wrong")) for _ in range(3)]
        await until(lambda: len(watcher._waiting.get("a", ())) == 53)
        rows.versions["a"] = "2"
        await begun.wait()
        # Whoever asked first leaves: the others still get their answer.
        right[0].cancel()
        left.set()
        found = await asyncio.gather(*right[1:])
        assert len(set(found)) == 1
        assert [str(one) for one in await asyncio.gather(*wrong, return_exceptions=True)] == ["wrong"] * 3
        assert sorted(asked) == ["right", "wrong"]
        assert await watcher.wait("a", "2", 0.05) is None

    scene(play)


def test_a_change_before_the_wait_is_not_missed():
    async def play(rows, watcher):
        rows.versions["a"] = "2"
        async with asyncio.timeout(PATIENCE_S):
            await watcher.wait("a", "1", 2 * PATIENCE_S)

    scene(play)


def test_a_database_that_is_away_only_costs_time(monkeypatch):
    monkeypatch.setattr(long_polling, "BACK_OFF_S", 0.05)

    async def play(rows, watcher):
        rows.versions["a"] = "2"
        rows.failing = 2
        async with asyncio.timeout(PATIENCE_S):
            await watcher.wait("a", "1", 2 * PATIENCE_S)
        assert len(rows.asked) == 3

    scene(play)


@pytest.mark.parametrize("before", [True, False])
def test_a_stopping_server_sends_everybody_home(before):
    async def play(_rows, watcher):
        if before:
            watcher.close()
        wait = asyncio.create_task(watcher.wait("a", "1", 2 * PATIENCE_S))
        if not before:
            await until(lambda: watcher._waiting)
        watcher.close()
        async with asyncio.timeout(PATIENCE_S):
            await wait

    scene(play)
