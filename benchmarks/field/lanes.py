"""Many networks at the same time, each piece of work on cores of its own, so that none takes another's time."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.field import measure
from benchmarks.field.measure import OURS, PEER, PEERS, RECIPES, Result
from benchmarks.field.networks import Network

# No piece is begun for less.
_LEAST_S = 15.0
_PREPARE, _JUDGE = "prepare", "judge"
# As a table lists them.
_ORDER = [*((OURS, setting) for setting in RECIPES), *((PEER, setting) for setting in PEERS)]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long it may take.

    seconds: after so many no piece runs on but the judging; what did not end is left out. None: all of it ends.
    race_s: how long the results of a network are raced.
    keep: what an earlier run made and left there is not made again.
    judge: whether networks are judged and raced; without it they are only made.
    """

    recipes: Sequence[str]
    peers: bool = True
    lanes: int = 1
    seconds: float | None = None
    race_s: float = 20.0
    keep: bool = False
    judge: bool = True


@dataclass(order=True)
class _Piece:
    """Work that a lane takes; the smallest rank is taken first."""

    rank: tuple[int, ...]
    name: str = field(compare=False)
    maker: str = field(compare=False)
    setting: str = field(compare=False)


@dataclass
class _Course:
    """How far a network has come."""

    network: Network
    order: int
    prepared: bool = False
    judging: bool = False
    waiting: list[_Piece] = field(default_factory=list)
    running: int = 0
    made: list[Result] = field(default_factory=list)


class Bench:
    """Measures networks in lanes."""

    def __init__(self, chosen: Sequence[Network], plan: Plan, downloads: Path, folder: Path) -> None:
        self._plan, self._downloads, self._folder = plan, downloads, folder
        self._courses = {network.name: _Course(network, order) for order, network in enumerate(chosen)}
        for course in self._courses.values():
            course.waiting = list(self._pieces(course))
        self._started = time.monotonic()

    def results(self) -> Iterator[tuple[Network, list[Result]]]:
        """Yield each network with its results as soon as it is judged; the original is the first of them.

        A network that cannot be prepared has one result, the problem.
        """
        lanes = _split(self._plan.lanes)
        context = multiprocessing.get_context("spawn")
        free = context.Queue()
        for cores in lanes:
            free.put(cores)
        running: dict[Future[Any], _Piece] = {}
        with ProcessPoolExecutor(len(lanes), context, _take_lane, (free,)) as pool:
            while True:
                while len(running) < len(lanes) and (piece := self._take()) is not None:
                    running[pool.submit(self._work(piece))] = piece
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    judged = self._settle(running.pop(done), done)
                    if judged is not None:
                        yield judged
        unjudged = [name for name, course in self._courses.items() if not course.judging] if self._plan.judge else []
        for name in unjudged:
            print(f"{name}: left out, time was over", file=sys.stderr, flush=True)

    def _pieces(self, course: _Course) -> Iterator[_Piece]:
        settings = [(OURS, setting) for setting in self._plan.recipes]
        settings += [(PEER, setting) for setting in PEERS] if self._plan.peers else []
        for at, (maker, setting) in enumerate(settings):
            # Where time is short, ours of all networks go before what they are compared with.
            rank = (course.order, at) if self._plan.seconds is None else (int(maker == PEER), course.order, at)
            yield _Piece(rank, course.network.name, maker, setting)

    def _take(self) -> _Piece | None:
        """Give the piece that is next, if there is one that can be begun."""
        if self._left() < _LEAST_S:
            for course in self._courses.values():
                course.waiting.clear()
        kinds = (self._to_prepare, self._to_make, self._to_judge)
        # Without a limit in time a network is done before the next one is begun.
        for kind in kinds if self._plan.seconds is not None else reversed(kinds):
            piece = kind()
            if piece is not None:
                return self._begun(self._courses[piece.name], piece)
        return None

    def _to_prepare(self) -> _Piece | None:
        for course in self._courses.values():
            if course.waiting and not course.prepared and not course.running:
                return _Piece((), course.network.name, "", _PREPARE)
        return None

    def _to_make(self) -> _Piece | None:
        ready = [min(course.waiting) for course in self._courses.values() if course.prepared and course.waiting]
        if not ready:
            return None
        piece = min(ready)
        self._courses[piece.name].waiting.remove(piece)
        return piece

    def _to_judge(self) -> _Piece | None:
        if not self._plan.judge:
            return None
        for course in self._courses.values():
            if course.made and not course.waiting and not course.running and not course.judging:
                course.judging = True
                return _Piece((), course.network.name, "", _JUDGE)
        return None

    def _begun(self, course: _Course, piece: _Piece) -> _Piece:
        course.running += 1
        print(f"{self._clock():.0f} s: {piece.name}: {piece.maker} {piece.setting}", file=sys.stderr, flush=True)
        return piece

    def _work(self, piece: _Piece) -> Callable[[], Any]:
        course, place = self._courses[piece.name], self._folder / piece.name
        if piece.setting == _PREPARE:
            return partial(measure.prepare, course.network, self._downloads, place, keep=self._plan.keep)
        if piece.setting == _JUDGE:
            made = sorted(course.made, key=lambda one: _ORDER.index((one.maker, one.setting)))
            return partial(measure.judged, course.network, place, made, self._plan.race_s)
        timeout = min(measure.TIMEOUT_S, self._left())
        if piece.maker == OURS:
            return partial(measure.ours, place, piece.setting, timeout, keep=self._plan.keep)
        return partial(measure.peer, course.network, place, piece.setting, timeout, keep=self._plan.keep)

    def _settle(self, piece: _Piece, done: Future[Any]) -> tuple[Network, list[Result]] | None:
        """Note what came of a piece; give the network's results where that was the last."""
        course = self._courses[piece.name]
        course.running -= 1
        error = done.exception()
        if error is not None:
            course.waiting.clear()
            course.judging = True
            problem = f"{type(error).__name__}: {error}"
            failed = Result(OURS, piece.setting, problem=problem, faults=(f"traceback: {problem}",))
            return course.network, [Result("fp32", "original"), *course.made, failed]
        if piece.setting == _PREPARE:
            course.prepared = True
            return None
        if piece.setting == _JUDGE:
            return course.network, done.result()
        course.made.append(done.result())
        return None

    def _left(self) -> float:
        return float("inf") if self._plan.seconds is None else self._plan.seconds - self._clock()

    def _clock(self) -> float:
        return time.monotonic() - self._started


def _split(lanes: int) -> list[list[int]]:
    """Share the cores that this process may use among lanes."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // lanes)
    return [cores[start : start + each] for start in range(0, each * min(lanes, len(cores)), each)]


def _take_lane(free: Any) -> None:
    """Keep this process, and those that it starts, to a lane's cores."""
    os.sched_setaffinity(0, free.get())
