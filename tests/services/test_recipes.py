"""Recipes by name in jobs: adapted to the workers and to the network when both are known, and stored as they are done."""

import pytest

import engine
from services import jobs, recipes, workers
from services.errors import RejectedError

from .conftest import INSPECTION, TENANT

CPU = {"provider": "cpu", "cpu": "x", "flags": [], "onnxruntime": "1.32"}
CAN = {**CPU, "training": {"available": True, "torch": "2.13.0", "device": "cpu"}}
CANNOT = {**CPU, "training": {"available": False, "reason": "PyTorch is not installed."}}


def beat(service, target):
    told = {"host": "h", "pid": 1, "isolation": "none", "cores": 4, "concurrency": 1, "queues": ["run.cpu"]}
    service.write(lambda session: workers.heartbeat(session, "wrk_1", targets=[target], **told))


def request(service, name="fast", model=None, dataset=None):
    dataset = dataset or service.ready_dataset()
    model = model or service.ready_model()
    return jobs.Request(model.id, dataset.id, engine.read_spec({"recipe": name}), {})


def types(job):
    return [step["type"] for step in job.spec["recipe"]["passes"]]


def test_with_pytorch_all_of_it_is_done_and_waits_for_such_a_worker(service):
    beat(service, CAN)
    job = service.submit(request(service)).job
    assert "left_out" not in job.spec["recipe"]
    assert [step["type"] for step in job.steps] == types(job)
    assert "distill" in types(job)
    assert service.messages.sent[-1][0] == "run.cpu.train"


def test_without_pytorch_the_rest_is_done_by_any_worker(service):
    beat(service, CANNOT)
    asked = request(service)
    first = service.submit(asked, idempotency_key="once").job
    assert "distill" not in types(first)
    assert [step["type"] for step in first.steps] == types(first)
    left_out = first.spec["recipe"]["left_out"]
    assert left_out[0]["type"] == "distill"
    assert any("Without distill" in warning for warning in first.warnings)
    assert service.messages.sent[-1][0] == "run.cpu"
    # What is asked for is the same request, whatever came of it meanwhile; tried again, it is the same work.
    beat(service, CAN)
    assert service.submit(asked, idempotency_key="once").job.id == first.id
    service.write(lambda session: jobs.cancel(session, TENANT, first.id))
    again = service.write(lambda session: jobs.retry(session, TENANT, first.id)).job
    assert again.spec == first.spec


def test_data_are_asked_for(service):
    spec = engine.read_spec({"recipe": "small"})
    with pytest.raises(RejectedError, match="The recipe `small` needs data"):
        service.submit(jobs.Request(service.ready_model().id, None, spec, {}))


def test_what_a_network_that_is_still_to_be_made_lets_be_done_is_seen_then(service):
    """A chain: of a recipe the training of integers is left where the first job makes some, and all where it does not."""
    beat(service, CAN)
    for quantized in ("none", "fully"):
        first = service.submit().job
        unit_id = service.messages.sent[-1][1]
        waiting = service.submit(request(service, model=_Model(first.output_model_id))).job
        assert "distill" in types(waiting)
        assert service.finish(service.claim(unit_id), INSPECTION.model_copy(update={"quantized": quantized}))
        after = service.job(waiting.id)
        assert after.status == "queued", after.problem
        assert ("distill" in types(after)) == (quantized == "none")
        assert [step["type"] for step in after.steps] == types(after)
        assert ("left_out" in after.spec["recipe"]) == (quantized == "fully")


class _Model:
    def __init__(self, model_id):
        self.id = model_id


def test_offers_say_what_would_be_left_out_and_why(service):
    beat(service, CANNOT)
    model = service.ready_model()
    found = service.read(
        lambda session: recipes.offers(session, TENANT, model_id=model.id, dataset_id=None, target={"provider": "cpu"})
    )
    assert [offer.described["name"] for offer in found] == ["small", "fast", "fastest"]
    assert all("distill" in {each["type"] for each in offer.left_out} for offer in found)
    assert all(offer.problem is None for offer in found)
