"""A clock that jumps costs an attempt at most."""

from pathlib import Path

import pytest

from .conftest import STACKS

pytestmark = pytest.mark.parametrize("stack", STACKS, indirect=True)
PROGRAM = (str(Path(__file__).with_name("clock_worker.py")),)


def test_a_clock_that_jumps_costs_no_job(system, tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("0")
    worker = system.start_worker(program=PROGRAM, TEST_CLOCK=str(clock))
    inputs = system.inputs()
    ids = [system.submit(inputs)]
    system.wait_event(ids[0], "running")
    # Leases that are renewed seem to be over.
    clock.write_text("900")
    system.wait_final(ids[0])
    ids.append(system.submit(inputs))
    system.wait_event(ids[1], "running")
    # Those of the dead seem to last until the clock has come so far again.
    clock.write_text("-900")
    system.kill_tree(worker)
    system.start_worker(program=PROGRAM, TEST_CLOCK=str(clock))
    for job_id in ids:
        job = system.wait_final(job_id)
        assert (job.status, job.problem) == ("succeeded", None), system.log()
        system.assert_committed_once(job_id)
        because = [event.data["because"] for event in system.events(job_id) if "because" in event.data]
        assert set(because) <= {"attempt_lost"}
    # A message that is lost now is sent again, whatever the clock says of it.
    system.lose_broker()
    model = system.upload_network(1)
    system.start_broker()
    assert system.inspected(model).state == "ready"
    system.assert_no_child_left()
