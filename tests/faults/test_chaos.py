"""Processes are killed, stopped and told to stop at random while work is submitted: all of it ends, none twice, none that nobody killed fails.

`make soak` does it for a minute on each stack, `make chaos` for half an hour; `CHAOS_SECONDS` and `CHAOS_SEED` say otherwise,
`CHAOS_JOBS` and `CHAOS_KILLS` how many at least instead of how long, with the kills spread over the jobs. What it did is printed with its seed.
"""

import contextlib
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

import psutil
import pytest
from sqlalchemy import func, select

import engine
from models import Job, Unit
from services import jobs
from services.errors import ConflictError

from .conftest import PATIENCE_S, STACKS, TENANT

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)
_LOOK_S = 0.1
# A long run that is cut off has told how far it came.
_TOLD_EVERY = 10
_UNIT = re.compile(r"/(unt_\w+)/")
# The service tries again after so many crashes of a job's own process: whoever kills more often is to blame.
_MOST_CRASHES = 2
_PROFILE = {"kind": "profile", "targets": [{"provider": "cpu", "threads": 1}], "measure_seconds": 0.1}


@dataclass(frozen=True)
class Pace:
    """How many workers there are, how many jobs wait or run at any time, the longest pause between two acts, and one job in
    how many compresses; the others profile."""

    workers: int
    waiting: int
    pause_s: float
    compresses: int = 8


# The short one goes on beside other tests, which it leaves most of the processors.
SHORT = Pace(workers=1, waiting=1, pause_s=4.0)
FAST = Pace(workers=2, waiting=4, pause_s=1.5)
# For many jobs: somebody always has one to begin with, and acts come when they are due.
MANY = Pace(workers=max(2, len(os.sched_getaffinity(0)) // 4), waiting=16, pause_s=0.5, compresses=16)


class Chaos:
    """Does one thing after another to a service, and keeps jobs and uploads coming."""

    def __init__(self, system, seed, pace):
        self.system = system
        self.pace = pace
        self.random = random.Random(seed)
        self.done = Counter()
        self.ids = []
        self.uploads = []
        self.cancelled = set()
        self._crashes = Counter()
        self._stopped = []
        for _ in range(pace.workers):
            system.start_worker()
        self.inputs = system.inputs()

    @property
    def kills(self):
        return sum(
            self.done[act.__name__] for act in (self.kill_child, self.kill_pool, self.kill_worker, self.lose_broker)
        )

    def go_on(self, is_enough, is_due):
        acts = [self.kill_child] * 3 + [self.kill_pool] * 3 + [self.kill_worker] * 2
        acts += [self.lose_broker, self.drain, self.stop, self.repeat, self.cancel]
        while not is_enough(self):
            self.submit()
            if not is_due(self):
                self.wake()
                time.sleep(_LOOK_S)
                continue
            act = self.random.choice(acts)
            # What is there one moment may be gone the next.
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                act()
                self.done[act.__name__] += 1
                self.tell()
            self.wake()
            time.sleep(self.random.uniform(0, self.pace.pause_s))
        self.wake(at_once=True)

    def tell(self):
        if self.done.total() % _TOLD_EVERY == 0:
            sys.stderr.write(f"{len(self.ids)} jobs, {self.kills} kills: {dict(self.done)}\n")

    def submit(self):
        with self.system.database.reading() as session:
            waiting = session.scalar(select(func.count()).select_from(Job).where(Job.finished_at.is_(None)))
        for _ in range(self.pace.waiting - waiting):
            if self.random.random() < 1 / self.pace.compresses:
                self.ids.append(self.system.submit(self.inputs))
            else:
                self.ids.append(self.profile())
            if self.random.random() < 1 / 4:
                self.uploads.append(self.system.upload_network(len(self.uploads) + 1))

    def profile(self):
        """Submit the smallest job that there is."""
        request = jobs.Request(self.inputs[0].id, None, engine.read_spec(_PROFILE), {}, cache="refuse")
        with self.system.database.transaction() as session:
            return jobs.submit(session, TENANT, request).job.id

    def kill_child(self):
        child = self.random.choice([one for one in self.system.children() if _UNIT.search(f"{one.cwd()}/")])
        unit = _UNIT.search(f"{child.cwd()}/")[1]
        if self._crashes[unit] >= _MOST_CRASHES:
            raise IndexError
        self._crashes[unit] += 1
        child.kill()

    def kill_pool(self):
        worker = psutil.Process(self.random.choice(self.system.workers).pid)
        self.random.choice(worker.children()).kill()

    def kill_worker(self):
        self.system.kill_tree(self.random.choice(self.system.workers))
        self.system.start_worker()

    def drain(self):
        worker = self.random.choice(self.system.workers)
        os.kill(worker.pid, signal.SIGTERM)
        self.system.start_worker()
        end = time.monotonic() + PATIENCE_S
        while worker.poll() is None:
            # One of its pool processes may stand still, and it waits for that one.
            self.wake()
            assert time.monotonic() < end, self.system.log()
            time.sleep(_LOOK_S)
        self.system.workers.remove(worker)

    def stop(self):
        """Let a pool process stand still for longer than its lease."""
        worker = psutil.Process(self.random.choice(self.system.workers).pid)
        pool = self.random.choice(worker.children())
        pool.suspend()
        self._stopped.append((time.monotonic() + 5, pool))

    def wake(self, *, at_once=False):
        for when, pool in list(self._stopped):
            if at_once or time.monotonic() > when:
                self._stopped.remove((when, pool))
                with contextlib.suppress(psutil.NoSuchProcess):
                    pool.resume()

    def lose_broker(self):
        self.system.lose_broker()
        self.system.start_broker()

    def repeat(self):
        """Send a message again, whatever became of its unit."""
        with self.system.database.reading() as session:
            queue, unit_id = self.random.choice(session.execute(select(Unit.queue, Unit.id)).all())
        self.system.database.publisher.publish(queue, unit_id)

    def cancel(self):
        with self.system.database.transaction() as session:
            waiting = session.scalars(select(Job.id).where(Job.finished_at.is_(None))).all()
            job_id = self.random.choice(waiting)
            # One that has ended meanwhile says so, and nothing of it changes.
            with contextlib.suppress(ConflictError):
                jobs.cancel(session, TENANT, job_id)
                self.cancelled.add(job_id)


@dataclass(frozen=True)
class Numbers:
    """How many jobs and kills are wanted at least, as the environment asks; zero where it does not."""

    jobs: int
    kills: int

    @classmethod
    def asked(cls):
        return cls(*(int(os.environ.get(name, "0")) for name in ("CHAOS_JOBS", "CHAOS_KILLS")))

    def enough(self, seconds):
        """Give what says whether it has gone on for long enough: for so long, where no number is asked for."""
        if self.jobs or self.kills:
            return lambda chaos: len(chaos.ids) >= self.jobs and chaos.kills >= self.kills
        end = time.monotonic() + float(os.environ.get("CHAOS_SECONDS", seconds))
        return lambda _chaos: time.monotonic() > end

    def due(self, chaos):
        """Whether it is time for an act: kills keep step with jobs where both are counted, else always."""
        return not (self.jobs and self.kills) or chaos.kills * self.jobs < self.kills * len(chaos.ids)


@pytest.mark.parametrize(
    ("seconds", "pace"),
    [pytest.param(60, SHORT, marks=pytest.mark.soak), pytest.param(900, FAST, marks=pytest.mark.chaos)],
)
def test_whatever_dies_every_job_ends_once(system, seconds, pace):
    # The same in every short run; what comes of it is not, for nobody repeats when the kernel does what.
    seed = int(os.environ.get("CHAOS_SEED", 1 if pace is SHORT else random.randrange(1 << 32)))
    sys.stderr.write(f"CHAOS_SEED={seed}\n")
    numbers = Numbers.asked()
    chaos = Chaos(system, seed, MANY if numbers.jobs and numbers.kills else pace)
    started = time.monotonic()
    chaos.go_on(numbers.enough(seconds), numbers.due)
    ended = Counter()
    for job_id in chaos.ids:
        job = system.wait_final(job_id)
        system.assert_committed_once(job_id)
        ended[job.status] += 1
        expected = {"succeeded", "cancelled"} if job_id in chaos.cancelled else {"succeeded"}
        assert job.status in expected, (job.problem, [(one.type, one.data) for one in system.events(job_id)])
    for model in chaos.uploads:
        found = system.inspected(model)
        assert found.state == "ready", found.problem
    took = f"in {(time.monotonic() - started) / 60:.1f} minutes"
    sys.stderr.write(
        f"{dict(ended)} and {len(chaos.uploads)} uploads {took}, {chaos.kills} kills: {dict(chaos.done)}\n"
    )
    assert ended["succeeded"]
    assert sum(chaos.done.values()) > 3
    system.assert_no_child_left()
