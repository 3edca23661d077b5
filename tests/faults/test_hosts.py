"""Workers on two hosts share nothing but database, broker and bucket; one takes over what the other lost with its disk."""

import shutil

import pytest
from sqlalchemy import select

from models import Unit, Worker

JOBS = 4


def _working(session):
    """Give the processes of the workers that have a unit in hand."""
    running = select(Worker.pid).join(Unit, Unit.worker_id == Worker.id).where(Unit.status == "running")
    return set(session.scalars(running))


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_a_host_that_is_lost_with_its_disk_costs_no_job(system, tmp_path):
    hosts = {}
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        worker = system.start_worker(ONNXPRESS_DATA_DIR=str(folder))
        hosts[worker.pid] = (worker, folder)
    inputs = system.inputs()
    ids = [system.submit(inputs) for _ in range(JOBS)]
    system.until(lambda session: _working(session) == set(hosts))
    assert all(list((folder / "work").iterdir()) for _, folder in hosts.values())

    worker, folder = next(iter(hosts.values()))
    system.kill_tree(worker)
    shutil.rmtree(folder)

    for job_id in ids:
        job = system.wait_final(job_id)
        assert (job.status, job.problem) == ("succeeded", None), system.log()
        system.assert_committed_once(job_id)
    repeated = [event.data["because"] for job_id in ids for event in system.events(job_id) if "because" in event.data]
    # At most the one that the lost host had in hand, and not because it crashed.
    assert repeated in ([], ["attempt_lost"])
