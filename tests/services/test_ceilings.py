"""A job asks for no more than the operator gives: what it says beyond is refused by its field, what it leaves open is lowered."""

import pytest

import engine
from services import ceilings, jobs
from services.errors import InvalidError
from settings import Settings

from .conftest import TENANT

SETTINGS = Settings(max_job_memory_mb=1024, max_job_runtime_s=600, max_job_measuring_s=100, max_job_trials=20)
SIMPLIFY = {"recipe": {"passes": [{"type": "simplify"}]}}
CPU = {"provider": "cpu"}


def held(**body):
    return ceilings.held(engine.read_spec(body), SETTINGS)


def refused(**body):
    with pytest.raises(InvalidError) as caught:
        held(**body)
    assert caught.value.exact_code == "over_ceiling"
    return {error.pointer: error.message for error in caught.value.errors}


def test_what_is_not_said_is_lowered():
    spec = held(**SIMPLIFY)
    assert (spec.limits.max_memory_mb, spec.limits.max_runtime_s) == (1024, 600)
    assert held(**SIMPLIFY, limits={"max_runtime_s": 60}).limits.max_runtime_s == 60
    search = held(goal={"minimise": "size", "effort": "medium"})
    assert search.allowed == (600.0, 20)
    assert held(goal={"minimise": "size", "effort": "low"}).budget.max_trials is None


def test_what_is_said_beyond_a_ceiling_is_refused_by_its_field():
    told = refused(**SIMPLIFY, limits={"max_memory_mb": 1025, "max_runtime_s": 601})
    assert set(told) == {"/limits/max_memory_mb", "/limits/max_runtime_s"}
    assert "1024 MiB" in told["/limits/max_memory_mb"]
    assert set(refused(goal={"minimise": "size"}, budget={"max_trials": 21})) == {"/budget/max_trials"}


def test_measuring_counts_for_all_targets_together():
    targets = [{**CPU, "threads": threads} for threads in (1, 2, 3)]
    assert held(kind="profile", targets=targets, measure_seconds=33).measure_seconds == 33
    assert "102 s" in refused(kind="profile", targets=targets, measure_seconds=34)["/measure_seconds"]
    assert set(refused(**SIMPLIFY, tune={"max_seconds": 101})) == {"/tune/max_seconds"}


def test_a_spec_has_a_size():
    names = [f"{number:08} {'node' * 20}" for number in range(4_000)]
    assert set(refused(recipe={"passes": [{"type": "quantize_static", "exclude": names}]})) == {""}


def test_no_way_to_a_job_leads_past_the_ceilings(service):
    dear = service.request(limits={"max_memory_mb": 2048})
    for way in (jobs.submit, jobs.plan):
        with pytest.raises(InvalidError):
            service.write(lambda session, way=way: way(session, TENANT, dear, settings=SETTINGS))
    job = service.submit(dear).job
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    with pytest.raises(InvalidError):
        service.write(lambda session: jobs.retry(session, TENANT, job.id, settings=SETTINGS))
    cheap = service.submit(service.request(), settings=SETTINGS).job
    assert cheap.spec["limits"]["max_memory_mb"] == 1024
