"""What of a network could be pruned is worked out once for the same bytes, when somebody asks."""

import threading
from datetime import timedelta

import pytest

import engine
from models import Prunability, Unit, UnitStatus
from services import analyses, attempts, catalog, queue, reconcile
from services.claims import Answer, Result
from services.errors import ConflictError, NotFoundError, QuotaError, RejectedError
from services.problems import MEMORY_LIMIT, PENDING_LIMIT, WORKER_LOST
from settings import Settings

TENANT = "default"
RESULT = engine.Prunability(
    prunable_parameters=0.5,
    prunable_macs=0.5,
    parameters=10,
    macs=10,
    kinds={},
    groups=(),
    groups_total=0,
    frozen=(),
    frozen_total=0,
).model_dump(mode="json")

INVALID = {"code": "model_invalid", "class": "user", "retryable": False, "message": "It is no network."}
ANSWER = Result(Answer(engine.Prunability.model_validate(RESULT)))


def find(service, model, tenant=TENANT):
    return service.read(lambda session: analyses.find(session, tenant, model.id))


def start(service, model, tenant=TENANT, settings=None):
    settings = settings or service.settings
    return service.write(lambda session: analyses.start(session, tenant, model.id, settings))


def fail(service, claim, problem):
    return service.write(lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, problem))


def finish(service, claim):
    return service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, claim.token, ANSWER))


def test_it_is_found_out_once_for_the_same_bytes(service):
    model, same = service.ready_model(content=b"one"), service.ready_model(content=b"one")
    assert find(service, model) is None
    assert start(service, model).status is UnitStatus.QUEUED
    assert start(service, same).unit_id == start(service, model).unit_id == find(service, same).unit_id
    claim = service.claim()
    assert (claim.kind, [item.path for item in claim.inputs]) == ("prunability", ["model/model.onnx"])
    assert find(service, same).status is UnitStatus.RUNNING
    assert finish(service, claim)
    found = find(service, same)
    assert (found.status, found.result, found.problem) == (UnitStatus.SUCCEEDED, RESULT, None)
    assert not service.messages.sent
    # The network is as ready as it was.
    assert service.read(lambda session: session.get_one(type(model), model.id)).state == "ready"


def test_many_who_ask_at_once_start_one(service):
    model = service.ready_model()
    found = []
    threads = [threading.Thread(target=lambda: found.append(start(service, model).unit_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_lost_attempt_keeps_nothing(service):
    model = service.ready_model()
    start(service, model)
    claim = service.claim()
    assert not service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, "other", ANSWER))
    assert find(service, model).result is None


@pytest.mark.parametrize(("problem", "said"), [(MEMORY_LIMIT, "analysis needs more than"), (INVALID, "no network")])
def test_why_there_is_no_result_stays(service, problem, said):
    model = service.ready_model()
    start(service, model)
    assert fail(service, service.claim(), problem)
    found = start(service, model)
    assert (found.status, found.result) == (UnitStatus.FAILED, None)
    assert found.problem["code"] == problem["code"]
    assert said in found.problem["message"]
    assert service.read(lambda session: session.get_one(type(model), model.id)).state == "ready"


@pytest.mark.parametrize("problem", [WORKER_LOST, PENDING_LIMIT])
def test_what_may_pass_is_tried_again_at_the_next_question(service, problem):
    model = service.ready_model()
    first = start(service, model)
    assert fail(service, service.claim(), problem)
    assert find(service, model) is None
    second = start(service, model)
    assert second.unit_id != first.unit_id
    assert finish(service, service.claim())
    assert find(service, model).result == RESULT


def test_another_version_of_the_service_finds_out_anew(service):
    model = service.ready_model()
    start(service, model)
    finish(service, service.claim())
    service.write(lambda session: setattr(session.query(Prunability).one(), "version", "0.0.0"))
    assert find(service, model) is None
    start(service, model)
    assert find(service, model).status is UnitStatus.QUEUED


def test_it_goes_with_the_network(service):
    model = service.ready_model()
    start(service, model)
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))
    with pytest.raises(NotFoundError):
        find(service, model)
    claim = service.claim()
    assert claim.inputs == ()
    assert finish(service, claim)
    assert service.read(lambda session: session.query(Prunability).count()) == 0


def test_only_ready_networks_of_the_tenants_own(service):
    model = service.ready_model()
    checking = service.upload()
    with pytest.raises(NotFoundError):
        find(service, model, tenant="other")
    with pytest.raises(NotFoundError):
        start(service, model, tenant="other")
    with pytest.raises(ConflictError) as error:
        start(service, checking)
    assert error.value.exact_code == "model_not_ready"
    fail(service, service.claim(), INVALID)
    with pytest.raises(RejectedError):
        start(service, checking)


def test_one_that_nobody_works_on_ends(service):
    model = service.ready_model()
    unit_id = start(service, model).unit_id
    with service.database.transaction() as session:
        unit = session.get_one(Unit, unit_id)
        unit.pending_until = unit.created_at
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)
    assert find(service, model) is None


def test_processor_time_is_measured_and_has_a_quota(service):
    settings = Settings(data_dir=service.settings.data_dir, quota_cpu_s=100, quota_cpu_window_s=1000)
    model = service.ready_model()
    start(service, model, settings=settings)
    claim = service.claim()
    renew = {"lease_s": 30, "cpu_s": 60.0}
    assert service.write(lambda session: queue.renew(session, claim.unit_id, claim.token, **renew))
    other = service.ready_model()
    start(service, other, settings=settings)
    # Another attempt goes on counting.
    give_back = {"settings": settings, "counted": False}
    service.write(lambda session: attempts.give_back(session, service.store, claim.unit_id, claim.token, **give_back))
    again = service.claim(claim.unit_id)
    assert again.cpu_s == 60.0
    assert service.write(lambda session: attempts.spent(session, claim.unit_id, again.token, cpu_s=150.0))
    assert finish(service, again)
    job = service.request(service.ready_model())
    for ask in (
        lambda: start(service, service.ready_model(), settings=settings),
        lambda: service.submit(job, settings=settings),
    ):
        with pytest.raises(QuotaError) as error:
            ask()
        assert error.value.exact_code == "quota_cpu"
        assert 990 <= error.value.retry_after_s <= 1000
    # Long ago no longer counts.
    service.write(lambda session: _age(session, claim.unit_id, 1001))
    service.submit(job, settings=settings)


def test_the_quota_tells_when_enough_has_left_the_window(service):
    settings = Settings(data_dir=service.settings.data_dir, quota_cpu_s=100, quota_cpu_window_s=1000)
    for cpu_s, age in ((30.0, 900), (50.0, 600), (60.0, 300)):
        unit_id = start(service, service.ready_model()).unit_id
        claim = service.claim()
        service.write(
            lambda session, claim=claim, cpu_s=cpu_s: attempts.spent(session, claim.unit_id, claim.token, cpu_s=cpu_s)
        )
        finish(service, claim)
        service.write(lambda session, unit_id=unit_id, age=age: _age(session, unit_id, age))
    with pytest.raises(QuotaError) as error:
        service.submit(settings=settings)
    # 140 s are used: the first 30 s are not enough, with the next 50 s it is below 100 s.
    assert 395 <= error.value.retry_after_s <= 400


def _age(session, unit_id, seconds):
    unit = session.get_one(Unit, unit_id)
    unit.finished_at -= timedelta(seconds=seconds)
