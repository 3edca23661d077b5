"""What of a network could be pruned: 202 until a worker has found it out, then the same for everybody."""

import threading

import pytest

import engine
import models
from services import attempts, queue
from services.claims import Answer, Result
from services.storage import open_store
from settings import Settings

RESULT = {
    "prunable_parameters": 0.5,
    "prunable_macs": 0.75,
    "parameters": 100,
    "macs": 1000,
    "kinds": {"channels": 1},
    "groups": [
        {
            "name": "conv",
            "kind": "channels",
            "channels": 8,
            "lossy": False,
            "producers": ["conv"],
            "members": [{"node": "conv", "initializer": "w", "axis": 0, "width": 8}],
            "members_total": 1,
        }
    ],
    "groups_total": 1,
    "frozen": [{"node": "gemm", "op": "Gemm", "reason": "the network's output", "channels": 10}],
    "frozen_total": 1,
}


@pytest.fixture
def model(service, client):
    return service.ready_model(client, f"bytes {models.new_id('x')}".encode())


def work(service, model, *, result=None, problem=None):
    """Do what a worker does with the analysis."""
    with service.database.transaction() as session:
        asked = session.query(models.Unit.id).filter_by(model_id=model, kind="prunability", status="queued")
        claim = queue.claim(session, asked.scalar(), worker_id="wrk_test", lease_s=30)
    store = open_store(service.settings)
    with service.database.transaction() as session:
        if problem is not None:
            assert attempts.fail(session, store, claim.unit_id, claim.token, problem)
        else:
            answer = Answer(engine.Prunability.model_validate(result))
            assert attempts.finish(session, store, claim.unit_id, claim.token, Result(answer))


def test_it_is_202_until_it_is_there(service, client, model):
    path = f"/v1/models/{model}/prunability"
    first = client.get(path)
    assert (first.status_code, first.json()) == (202, {"model": model, "status": "queued"})
    assert first.headers["Retry-After"] == "1"
    assert client.get(path).status_code == 202
    work(service, model, result=RESULT)
    found = client.get(path)
    assert (found.status_code, found.json()) == (200, RESULT)
    again = client.get(path, headers={"If-None-Match": found.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_who_waits_hears_of_it(service, client, model):
    answers = []

    def wait():
        with service.client() as other:
            answers.append(other.get(f"/v1/models/{model}/prunability", params={"wait": 60}))

    client.get(f"/v1/models/{model}/prunability")
    with service.database.reading() as session:
        unit = session.query(models.Unit.id).filter_by(model_id=model, kind="prunability").scalar()
    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    service.until_waiting(unit, 3)
    work(service, model, result=RESULT)
    service.until_woken(threads)
    assert [answer.json() for answer in answers] == [RESULT] * 3


def test_a_network_that_cannot_be_analysed_is_422(service, client, model):
    client.get(f"/v1/models/{model}/prunability")
    problem = {"code": "model_invalid", "class": "user", "retryable": False, "message": "No.", "node": "conv"}
    work(service, model, problem=problem)
    answer = client.get(f"/v1/models/{model}/prunability")
    assert (answer.status_code, answer.json()["code"], answer.json()["node"]) == (422, "model_invalid", "conv")


def test_only_a_ready_network_of_ones_own(client, stranger, model):
    raw = {"Content-Type": "application/octet-stream"}
    checking = client.post("/v1/models", content=b"x", headers=raw).json()["id"]
    answer = client.get(f"/v1/models/{checking}/prunability")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_ready")
    assert stranger.get(f"/v1/models/{model}/prunability").status_code == 404
    client.get(f"/v1/models/{model}/prunability")
    assert stranger.get(f"/v1/models/{model}/prunability").status_code == 404


def test_a_key_that_only_reads_may_ask(service, model):
    key = service.new_key(scopes=("read",)).text
    with service.client() as client:
        headers = {"Authorization": f"Bearer {key}"}
        assert client.get(f"/v1/models/{model}/prunability", headers=headers).status_code == 202
        assert client.delete(f"/v1/models/{model}", headers=headers).status_code == 403


def test_processor_time_has_a_quota(new_service, tmp_path):
    with new_service(Settings(data_dir=tmp_path, quota_cpu_s=10)) as service, service.client() as client:
        model = service.ready_model(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        assert client.post("/v1/jobs", json=body).status_code == 202
        with service.database.transaction() as session:
            session.query(models.Unit).filter(models.Unit.job_id.is_not(None)).one().cpu_s = 11.0
        for answer in (client.post("/v1/jobs", json=body), client.get(f"/v1/models/{model}/prunability")):
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_cpu")
            assert int(answer.headers["Retry-After"]) == 86_400
            assert answer.json()["retryable"]
        # The rest of the service is as it was.
        assert client.get(f"/v1/models/{model}").status_code == 200
