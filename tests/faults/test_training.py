"""A process that dies while it trains loses no more than the time since its last checkpoint."""

import json
import time

import pytest

from services import jobs

from .conftest import PATIENCE_S, TENANT

DISTILL = {"type": "distill", "seconds": 30.0, "learning_rate": 0.01, "patience": 1.0}


@pytest.mark.chaos
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(system):
    """Its own seconds count from the start of the first attempt: what was trained until the checkpoint is not trained again."""
    system.start_worker(ONNXPRESS_WORKER_TRAINING="auto")
    inputs = system.inputs(samples=200)
    student = system.inspected(system.upload_network(seed=7))
    system.until(lambda session: "run.cpu.train" in queues(session))
    job_id = system.submit(inputs, passes=[DISTILL], student=student)
    child = system.job_child()
    unit = next((system.data_dir / "work").glob("unt_*"))
    saved = unit / "1" / "steps" / "00.checkpoint" / "training.pt"
    end = time.monotonic() + PATIENCE_S
    while not saved.exists():
        assert time.monotonic() < end, system.log()
        time.sleep(0.1)
    time.sleep(1.0)
    child.kill()
    child.wait(PATIENCE_S)
    job = system.wait_final(job_id)
    assert (job.status, job.problem) == ("succeeded", None)
    told = [event.data for event in system.events(job_id)]
    assert [each["because"] for each in told if "because" in each] == ["attempt_crashed"]
    report = json.loads(_report(system, job_id))
    training = report["steps"][0]["change"]["details"]["training"]
    # Twenty seconds were behind it: an attempt that began anew would have no such step to go on from.
    assert 0 < training["resumed_from"] < training["steps"]
    assert training["points"][-1]["seconds"] >= 20
    system.assert_committed_once(job_id)
    system.assert_no_child_left()


def queues(session):
    from services import workers

    return {name for worker in workers.live(session) for name in worker.queues}


def _report(system, job_id):
    with system.database.reading() as session:
        file = jobs.report(session, TENANT, job_id)["report.json"]
        return b"".join(system.store.read(TENANT, file.sha256))
