"""Searches over HTTP, on a service without workers: the test does what workers would do."""

import pytest

import engine
import models
from services import attempts, queue
from services.artifacts import NewFile
from services.claims import Answer, Candidate, Result
from services.storage import open_store
from services.unit_kinds import read_answer

from .conftest import INSPECTION
from .test_jobs import new_job

GOAL = {"minimise": "size", "subject_to": [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.5}]}
VALUES = {"macs": 10, "parameters": 4, "latency": None, "seconds": 1.0}


@pytest.fixture(scope="module")
def model(service):
    with service.client() as client:
        return service.ready_model(client, b"a network to search over")


@pytest.fixture
def body(model):
    return {"model": model, "goal": GOAL, "space": {"train": False}, "cache": "refuse"}


def claim(service, job, kind):
    with service.database.transaction() as session:
        of_job = (models.Unit.job_id == job["id"], models.Unit.kind == kind, models.Unit.status == "queued")
        unit_id = session.query(models.Unit.id).filter(*of_job).order_by(models.Unit.position).limit(1).scalar()
        return queue.claim(session, unit_id, worker_id="wrk_test", lease_s=30)


def propose(service, job, *widths):
    """Have the coordinator ask for candidates."""
    held = claim(service, job, "search")
    asked = [{"point": {"widths": {"g": width}}, "because": "it is cheap"} for width in widths]
    result = Result(read_answer(held, {"do": "try_proposals", "proposals": asked}))
    with service.database.transaction() as session:
        assert attempts.finish(session, open_store(service.settings), held.unit_id, held.token, result)


def try_one(service, job, size):
    """Do the next trial."""
    held, store = claim(service, job, "trial"), open_store(service.settings)
    with store.writer(held.tenant_id, limit=1 << 20) as writer:
        writer.write(b"candidate of %d bytes" % size)
        writer.finish()
        values = engine.TrialValues.model_validate({**VALUES, "size_bytes": size})
        inspection = engine.Inspection.model_validate(INSPECTION)
        result = Result(Answer(Candidate(values), "candidate", inspection), (NewFile("model.onnx", writer),))
        with service.database.transaction() as session:
            assert attempts.finish(session, store, held.unit_id, held.token, result)


@pytest.fixture
def search(service, client, body):
    """A search with three candidates, of which the first has failed to be the best."""
    job = new_job(client, body)
    propose(service, job, 1, 2, 3)
    try_one(service, job, 90)
    try_one(service, job, 60)
    return job


def test_a_body_with_a_goal_is_a_search(client, body):
    plan = client.post("/v1/jobs:validate", json=body).json()
    assert (plan["valid"], plan["spec"]["kind"], plan["spec"]["goal"]["effort"]) == (True, "search", "medium")
    job = new_job(client, body)
    assert (job["kind"], job["steps"], job["paused_at"]) == ("search", [], None)
    assert job["links"]["front"] == f"/v1/jobs/{job['id']}/front"
    assert (
        new_job(client, body, **{"Idempotency-Key": "s1"})["id"]
        == new_job(client, body, **{"Idempotency-Key": "s1"})["id"]
    )


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"goal": {"minimise": "parameters"}}, "/goal/minimise"),
        ({"budget": {"max_seconds": 1}}, "/budget/max_seconds"),
        ({"space": {"precisions": ["int3"]}}, "/space/precisions/0"),
        ({"student": "mdl_" + "0" * 26}, "/student"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_where_it_is(client, body, more, pointer):
    answer = client.post("/v1/jobs", json={**body, **more})
    assert answer.status_code == 422
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}


def test_a_budget_beyond_the_limits_is_refused(client, body):
    answer = client.post("/v1/jobs", json={**body, "limits": {"max_runtime_s": 60}})
    assert (answer.status_code, answer.json()["code"]) == (422, "budget_over_limit")
    assert "budget.max_seconds" in answer.json()["hint"]


def test_trials_are_listed_page_by_page(client, search):
    first = client.get(f"/v1/jobs/{search['id']}/trials", params={"limit": 2}).json()
    assert [(one["number"], one["state"]) for one in first["items"]] == [(1, "succeeded"), (2, "succeeded")]
    assert first["items"][1]["values"]["size_bytes"] == 60
    assert first["items"][0]["proposal"]["point"]["widths"] == {"g": 1}
    rest = client.get(f"/v1/jobs/{search['id']}/trials", params={"after": first["next_after"]}).json()
    assert ([(one["number"], one["state"]) for one in rest["items"]], rest["next_after"]) == ([(3, "queued")], None)


def test_the_front_is_there_while_the_search_goes_on(client, search):
    front = client.get(f"/v1/jobs/{search['id']}/front").json()
    assert (front["final"], front["minimise"], front["chosen"]) == (False, "size", None)
    [point] = front["points"]
    assert (point["number"], point["measured"]["size_bytes"], point["stored"]) == (2, 60, True)


def test_events_tell_of_each_trial(client, search):
    lines = client.get(f"/v1/jobs/{search['id']}/logs").text.splitlines()
    for kind, times in (("trial_queued", 3), ("trial_started", 2), ("trial_ended", 2)):
        assert sum(kind in line for line in lines) == times


def test_a_point_is_picked_once_for_each_key(service, client, search):
    address = f"/v1/jobs/{search['id']}/front/2:pick"
    answers = [client.post(address, json={}, headers={"Idempotency-Key": search["id"]}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    made, again = (answer.json() for answer in answers)
    assert made["id"] == again["id"]
    assert answers[0].headers["Location"] == f"/v1/jobs/{made['id']}"
    assert (made["kind"], made["model"], made["spec"]["student_as_it_is"]) == ("compress", search["model"], True)
    assert made["spec"]["gates"] == search["spec"]["goal"]["subject_to"]
    network = client.get(f"/v1/models/{made['student']}").json()
    assert (network["name"], network["state"], network["parent"]) == ("net (trial 2)", "ready", search["model"])
    assert client.get(f"/v1/models/{made['student']}/content").content == b"candidate of 60 bytes"
    own = client.post(address, json={"gates": [], "labels": {"who": "me"}}).json()
    assert (own["spec"]["gates"], own["labels"]) == ([], {"who": "me"})
    admin = {"Authorization": f"Bearer {service.new_key(scopes=('admin',)).text}"}
    noted = client.get("/v1/audit", params={"action": "pick_point"}, headers=admin).json()["items"]
    assert {made["id"], own["id"]} <= {one["subject"] for one in noted}


@pytest.mark.parametrize(
    ("number", "status", "said"), [(1, 404, "no point of the front"), (3, 409, "queued"), (9, 404, "")]
)
def test_what_cannot_be_picked(client, search, number, status, said):
    answer = client.post(f"/v1/jobs/{search['id']}/front/{number}:pick", json={})
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True)


def test_a_search_pauses_and_goes_on(service, client, search):
    paused = client.post(f"/v1/jobs/{search['id']}:pause")
    assert (paused.status_code, paused.json()["paused_at"] is not None) == (200, True)
    assert client.post(f"/v1/jobs/{search['id']}:pause").json()["paused_at"] == paused.json()["paused_at"]
    assert client.post(f"/v1/jobs/{search['id']}:resume").json()["paused_at"] is None
    again = client.post(f"/v1/jobs/{search['id']}:resume")
    assert (again.status_code, again.json()["code"]) == (409, "not_paused")
    try_one(service, search, 70)
    assert client.post(f"/v1/jobs/{search['id']}:cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/jobs/{search['id']}:pause").json()["code"] == "already_final"


def test_other_kinds_of_job_and_other_tenants_have_none_of_it(service, client, model, search):
    plain = new_job(client, {"model": model, "recipe": {"passes": [{"type": "simplify"}]}})
    with service.client("beta") as stranger:
        for verb, way in (("GET", "/front"), ("GET", "/trials"), ("POST", ":pause"), ("POST", ":resume")):
            refused = client.request(verb, f"/v1/jobs/{plain['id']}{way}")
            assert (refused.status_code, refused.json()["code"]) == (409, "not_a_search")
            assert stranger.request(verb, f"/v1/jobs/{search['id']}{way}").status_code == 404
        assert stranger.post(f"/v1/jobs/{search['id']}/front/2:pick", json={}).status_code == 404
    assert client.post(f"/v1/jobs/{plain['id']}/front/2:pick", json={}).status_code == 409
