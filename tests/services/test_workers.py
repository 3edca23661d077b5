"""The registry: who lives, what runs where, what does not and why, and which job is refused."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from models import Unit, Worker
from services import queue, reconcile, workers
from services.errors import RejectedError
from services.routing import run_queues

CPU = {"provider": "cpu", "cpu": "x", "flags": [], "onnxruntime": "1.32"}
OPENVINO = {"provider": "openvino", "cpu": "x", "flags": [], "onnxruntime": "1.24"}
NO_CUDA = {"provider": "cuda", "listed": True, "reason": "libcudart.so is missing"}
NOT_BUILT = {"provider": "qnn", "listed": False, "reason": "built without"}


def beat(service, name="wrk_1", targets=(CPU,), unavailable=(), draining=False, concurrency=2):
    told = {"host": "h", "pid": 1, "isolation": "none", "cores": 4, "concurrency": concurrency, "draining": draining}
    queues = [f"run.{target['provider']}" for target in targets]
    service.write(
        lambda session: workers.heartbeat(
            session, name, queues=queues, targets=targets, unavailable=unavailable, **told
        )
    )


def silent(service, name, since):
    with service.database.transaction() as session:
        row = session.get_one(Worker, name)
        row.seen_at -= since


def states(service):
    return {seen.worker.id: (seen.state, seen.busy) for seen in service.read(workers.listed)}


def targets(service):
    return {one["provider"]: one for one in service.read(workers.targets)}


def test_a_target_is_live_as_long_as_a_worker_takes_jobs_for_it(service):
    beat(service, "wrk_1")
    beat(service, "wrk_2", concurrency=3)
    beat(service, "wrk_3", (OPENVINO,))
    found = targets(service)
    assert {name: (one["live"], one["workers"], one["slots"]) for name, one in found.items()} == {
        "cpu": (True, 2, 5),
        "openvino": (True, 1, 2),
    }
    beat(service, "wrk_3", (OPENVINO,), draining=True)
    assert states(service)["wrk_3"] == ("draining", 0)
    assert targets(service)["openvino"]["live"] is False
    service.write(lambda session: workers.leave(session, "wrk_3"))
    assert states(service)["wrk_3"] == ("gone", 0)
    silent(service, "wrk_1", timedelta(minutes=2))
    assert states(service)["wrk_1"] == ("gone", 0)
    assert [worker.id for worker in service.read(workers.live)] == ["wrk_2"]


def test_busy_is_counted_where_the_units_are(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    service.submit()
    claim = service.claim()
    found = targets(service)
    assert (found["cpu"]["busy"], found["openvino"]["busy"]) == (1, 0)
    assert states(service)["wrk_1"] == ("live", 1)
    # It has a unit to end: it is not gone yet.
    service.write(lambda session: workers.leave(session, "wrk_1"))
    assert states(service)["wrk_1"] == ("draining", 1)
    service.finish(claim)
    service.write(lambda session: workers.leave(session, "wrk_1"))
    assert states(service)["wrk_1"] == ("gone", 0)


def test_what_does_not_run_says_why_and_where(service):
    beat(service, "wrk_1", unavailable=(NOT_BUILT, NO_CUDA))
    beat(service, "wrk_2", unavailable=(NO_CUDA,))
    beat(service, "wrk_3", unavailable=({**NO_CUDA, "reason": "old"},))
    silent(service, "wrk_3", timedelta(minutes=2))
    assert service.read(workers.unavailable) == [
        {**NO_CUDA, "workers": ["wrk_1", "wrk_2"]},
        {**NOT_BUILT, "workers": ["wrk_1"]},
    ]
    assert "cuda" not in targets(service)


def test_a_job_for_a_target_never_seen_is_refused_with_what_there_is(service):
    beat(service, unavailable=(NO_CUDA,))
    beat(service, "wrk_2", (OPENVINO,))
    with pytest.raises(RejectedError, match="`cuda`") as refused:
        service.submit(service.request(target={"provider": "cuda"}))
    assert refused.value.exact_code == "target_unavailable"
    assert refused.value.problem == {"targets": ["cpu", "openvino"]}
    assert refused.value.hint == (
        "There is `cpu`, `openvino`. A worker's runtime lists `cuda`, but it does not run there: libcudart.so is missing"
    )


def test_a_target_is_remembered_for_seven_days(service):
    request = service.request(target={"provider": "openvino"})
    beat(service, "wrk_1", (OPENVINO,))
    silent(service, "wrk_1", timedelta(days=6, hours=23))
    assert service.submit(request).job.status == "queued"
    silent(service, "wrk_1", timedelta(hours=2))
    with pytest.raises(RejectedError):
        service.submit(request)


def test_cpu_is_always_accepted(service):
    assert service.submit().job.status == "queued"


def test_workers_that_are_gone_are_forgotten_but_not_their_targets(service):
    for name in ("wrk_1", "wrk_2", "wrk_3"):
        beat(service, name)
        silent(service, name, timedelta(hours=2 + int(name[-1])))
    beat(service, "wrk_4", (OPENVINO,))
    silent(service, "wrk_4", timedelta(days=2))
    beat(service, "wrk_5", (OPENVINO,))
    silent(service, "wrk_5", timedelta(days=8))
    service.write(workers.expire)
    with service.database.reading() as session:
        assert {row.id for row in session.query(Worker)} == {"wrk_1", "wrk_4"}
    assert set(targets(service)) == {"cpu", "openvino"}
    assert states(service) == {}


# Routing


def take(service, worker, *queues):
    with service.database.transaction() as session:
        return queue.claim_next(session, service.messages.take(), worker_id=worker, lease_s=30, queues=queues)


def test_a_unit_waits_in_the_queue_of_its_target(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    service.submit(service.request(target={"provider": "openvino"}))
    assert [name for name, _ in service.messages.sent] == ["run.openvino"]


def test_a_worker_without_the_target_neither_runs_it_nor_counts_an_attempt(service):
    beat(service, "wrk_1", (OPENVINO,))
    job = service.submit(service.request(target={"provider": "openvino"})).job
    message = service.messages.sent[0]
    assert take(service, "wrk_cpu", "run.cpu", "inspect") is None
    # Nor when it asks for the unit itself.
    with service.database.transaction() as session:
        assert queue.claim(session, message[1], worker_id="wrk_cpu", lease_s=30, queues=["run.cpu"]) is None
    with service.database.reading() as session:
        unit = session.get_one(Unit, message[1])
        assert (unit.status, unit.attempt, unit.losses) == ("queued", 0, 0)
    service.messages.sent.append(message)
    assert take(service, "wrk_1", "run.openvino").job_id == job.id


def test_a_worker_with_two_targets_keeps_one_order_and_loses_no_message(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    low = service.submit(service.request()).job
    high = service.submit(replace(service.request(target={"provider": "openvino"}), priority=5)).job
    assert [name for name, _ in service.messages.sent] == ["run.cpu", "run.openvino"]
    # The message of the cpu job brings the more urgent one, and comes again for whoever has the cpu only.
    assert take(service, "wrk_1", "run.cpu", "run.openvino").job_id == high.id
    assert [name for name, _ in service.messages.sent] == ["run.openvino", "run.cpu"]
    service.messages.sent.reverse()
    assert take(service, "wrk_2", "run.cpu").job_id == low.id
    assert take(service, "wrk_1", "run.cpu", "run.openvino") is None
    assert service.messages.sent == []


TRAINS = {"available": True, "torch": "2.13.0", "device": "cpu"}
WITH_TORCH = {**CPU, "training": TRAINS}
WITHOUT_TORCH = {**CPU, "training": {"available": False, "reason": "PyTorch is not installed."}}


@pytest.fixture
def training(service):
    """A request for a job with a step that trains."""
    passes = ({"type": "simplify"}, {"type": "distill"})
    return service.request(dataset=service.ready_dataset(), passes=passes, limits={"max_pending_s": 5})


def test_a_job_that_trains_is_refused_with_what_installs_pytorch(service, training):
    beat(service, "wrk_1", (WITHOUT_TORCH,))
    # One of a version that knows no training.
    beat(service, "wrk_2", (CPU,))
    with pytest.raises(
        RejectedError, match=r"Step 1 \(distill\) trains the network, and no worker for `cpu`"
    ) as refused:
        service.submit(training)
    assert refused.value.exact_code == "training_unavailable"
    assert "pip install 'onnxpress-server[train]'" in refused.value.hint
    assert refused.value.problem == {"step": 1}
    beat(service, "wrk_3", ({**OPENVINO, "training": TRAINS},))
    with pytest.raises(RejectedError, match="`cpu`"):
        service.submit(training)


def test_a_job_that_trains_waits_for_a_worker_with_pytorch(service, training):
    beat(service, "wrk_1", (WITHOUT_TORCH,))
    beat(service, "wrk_2", (WITH_TORCH,))
    job = service.submit(training).job
    [message] = service.messages.sent
    assert message[0] == "run.cpu.train"
    assert take(service, "wrk_1", *run_queues(WITHOUT_TORCH), "inspect") is None
    # Nor does one take it that asks for the unit itself, or one of the version before.
    with service.database.transaction() as session:
        assert queue.claim(session, message[1], worker_id="wrk_1", lease_s=30, queues=["run.cpu"]) is None
    service.messages.sent.append(message)
    assert take(service, "wrk_2", *run_queues(WITH_TORCH)).job_id == job.id
    found = {one["training"]["available"]: one["busy"] for one in service.read(workers.targets)}
    assert found == {True: 1, False: 0}


def test_who_can_train_takes_ordinary_jobs_in_the_same_order(service, training):
    beat(service, "wrk_1", (WITH_TORCH,))
    low = service.submit(training).job
    high = service.submit(replace(service.request(), priority=5)).job
    assert take(service, "wrk_1", *run_queues(WITH_TORCH)).job_id == high.id
    assert take(service, "wrk_1", *run_queues(WITH_TORCH)).job_id == low.id


def test_before_the_first_worker_has_come_a_job_that_trains_waits_as_any_other(service, training):
    assert service.submit(training).job.status == "queued"


def test_a_worker_with_pytorch_is_remembered_beside_those_without(service, training):
    beat(service, "wrk_1", (WITH_TORCH,))
    silent(service, "wrk_1", timedelta(days=2))
    beat(service, "wrk_2", (WITHOUT_TORCH,))
    service.write(workers.expire)
    job = service.submit(training).job
    with service.database.transaction() as session:
        session.execute(update(Unit).values(pending_until=Unit.created_at))
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)
    problem = service.job(job.id).problem
    assert problem["code"] == "pending_limit"
    assert "`cpu` and PyTorch" in problem["message"]
    assert "pip install" in problem["hint"]


def test_a_job_whose_target_does_not_come_back_fails_with_a_stable_reason(service):
    beat(service, "wrk_1", (OPENVINO,))
    beat(service, "wrk_2", (CPU,))
    silent(service, "wrk_1", timedelta(days=1))
    waiting = service.submit(service.request(target={"provider": "openvino"}, limits={"max_pending_s": 5})).job
    busy = service.submit(service.request(limits={"max_pending_s": 5})).job
    with service.database.transaction() as session:
        session.execute(update(Unit).values(pending_until=Unit.created_at))
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)
    found = service.job(waiting.id).problem
    assert (found["code"], found["retryable"]) == ("pending_limit", True)
    assert "`openvino`" in found["message"]
    assert "`openvino`" not in service.job(busy.id).problem["message"]
