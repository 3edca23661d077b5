"""Whatever is killed: every job ends, none is committed twice, no child is left running."""

import os
import signal

import psutil
import pytest

from .conftest import PATIENCE_S, STACKS

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)
STEPS = ("simplify",) * 4


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.chaos)])
def test_jobs_survive_the_loss_of_everything_in_turn(system, count):
    worker = system.start_worker(concurrency=2)
    inputs = system.inputs()
    ids = [system.submit(inputs) for _ in range(count)]

    # A child.
    system.wait_event(ids[0], "started")
    child = system.job_child()
    child.kill()
    child.wait(PATIENCE_S)

    # A pool process; the kernel ends its child with it.
    child = system.job_child()
    system.pool_process(worker, child).kill()
    child.wait(PATIENCE_S)

    # The broker, with all that it knew.
    system.job_child()
    system.lose_broker()
    system.start_broker()

    # The whole worker; its children end with it.
    system.job_child()
    children = system.children()
    system.kill_tree(worker)
    psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not [child for child in children if child.is_running()]
    system.start_worker(concurrency=2)

    for job_id in ids:
        job = system.wait_final(job_id)
        assert (job.status, job.problem) == ("succeeded", None)
        system.assert_committed_once(job_id)
    system.assert_no_child_left()
    # The worker that was killed may have been storing one job's network and reports; the sweep takes them when they are old.
    assert len(list((system.data_dir / "store" / "incoming").iterdir())) <= 5
    repeated = [event.data["because"] for job_id in ids for event in system.events(job_id) if "because" in event.data]
    assert "attempt_crashed" in repeated
    assert "attempt_lost" in repeated


def test_a_worker_parent_that_is_killed_alone_leaves_nothing_running(system):
    worker = system.start_worker()
    job_id = system.submit(system.inputs(), passes=STEPS)
    child, done = system.stop_after_a_step()
    pool = system.pool_process(worker, child)
    worker.kill()
    worker.wait()
    system.workers.remove(worker)
    system.start_worker()
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    system.assert_no_child_left()
    psutil.wait_procs([child, pool], timeout=PATIENCE_S)
    assert not child.is_running()
    assert not pool.is_running()
    assert_goes_on(system, job_id, done)


def test_a_job_that_crashes_each_time_fails_with_a_stable_reason(system):
    system.start_worker()
    job_id = system.submit(system.inputs())
    for attempt in range(1, int(system.settings.max_crashes) + 2):
        system.until(lambda _, attempt=attempt: _attempts(system, job_id) >= attempt)
        system.job_child().send_signal(signal.SIGSEGV)
        # The next child comes only after the end of this one is noted.
        system.until(lambda _, attempt=attempt: _attempts(system, job_id) > attempt or _is_final(system, job_id))
    job = system.wait_final(job_id)
    assert (job.status, job.problem["code"]) == ("failed", "process_crashed")
    system.assert_committed_once(job_id)
    system.assert_no_child_left()
    system.until(lambda _: not list((system.data_dir / "work").glob("unt_*")))


def test_a_stopped_worker_that_wakes_up_commits_nothing(system):
    worker = system.start_worker()
    job_id = system.submit(system.inputs())
    child = system.job_child()
    pool = system.pool_process(worker, child)
    # The whole of it, longer than the lease; its child goes on and ends its work. Whoever is stopped in the middle of a
    # transaction keeps what that has locked, so it is stopped between two.
    with system.database.transaction():
        pool.suspend()
    system.start_worker()
    job = system.wait_final(job_id)
    assert job.status == "succeeded"
    assert system.events(job_id)[-1].data["attempt"] == 2
    before = (job.version, [event.id for event in system.events(job_id)])
    pool.resume()
    psutil.wait_procs([child], timeout=PATIENCE_S)
    # It clears away what it worked in when it has tried to commit.
    system.until(lambda _: not list((system.data_dir / "work").glob("unt_*")))
    assert (system.job(job_id).version, [event.id for event in system.events(job_id)]) == before
    system.assert_committed_once(job_id)
    system.assert_no_child_left()
    assert list((system.data_dir / "store" / "incoming").iterdir()) == []


def test_a_drained_worker_gives_its_job_back(system):
    worker = system.start_worker()
    job_id = system.submit(system.inputs(), passes=STEPS)
    # It cannot end within the grace of a worker that is told to stop.
    _, done = system.stop_after_a_step()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0
    system.workers.remove(worker)
    system.assert_no_child_left()
    assert system.job(job_id).status == "queued"
    assert system.events(job_id)[-1].data["because"] == "attempt_returned"
    system.start_worker()
    assert system.wait_final(job_id).status == "succeeded"
    system.assert_committed_once(job_id)
    assert_goes_on(system, job_id, done)


def test_a_worker_that_is_told_to_stop_at_once_loses_no_job(system, stack):
    # A service on one machine is stopped by Ctrl-C, one on many by whoever looks after its processes.
    number = signal.SIGINT if stack == "embedded" else signal.SIGQUIT
    worker = system.start_worker()
    job_id = system.submit(system.inputs())
    system.job_child()
    children = system.children()
    # Of Ctrl-C the second one means it.
    for _ in range(2 if number == signal.SIGINT else 1):
        os.kill(worker.pid, number)
    worker.wait(PATIENCE_S)
    system.workers.remove(worker)
    psutil.wait_procs(children, timeout=PATIENCE_S)
    system.start_worker()
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None), system.log()
    system.assert_committed_once(job_id)
    system.assert_no_child_left()


def assert_goes_on(system, job_id, done):
    """The second attempt began after what the first one had done."""
    assert done
    assert system.begun_steps(job_id, 2) == [step for step in range(len(STEPS)) if step not in done]


def _attempts(system, job_id):
    return [event.type for event in system.events(job_id)].count("running")


def _is_final(system, job_id):
    return system.job(job_id).finished_at is not None
