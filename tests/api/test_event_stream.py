"""What happens to a job, told as events, as lines, in advance and again."""

import json
import threading

import httpx
import pytest
from sqlalchemy import event

from models import Unit
from services import attempts, keys

SIMPLIFY = {"passes": [{"type": "simplify"}]}


@pytest.fixture(scope="module")
def model(service):
    with service.client() as client:
        return service.ready_model(client)


@pytest.fixture
def body(model):
    return {"model": model, "recipe": SIMPLIFY}


@pytest.fixture
def job(client, body):
    return client.post("/v1/jobs", json=body).json()


def events(lines):
    """Read a stream of server-sent events."""
    found, fields = [], {}
    for line in lines:
        if not line and "data" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
        if not line:
            fields = {}
        name, _, value = line.partition(": ")
        fields[name] = value
    return found


def watch(client, job, heard, **headers):
    with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        heard += events(answer.iter_lines())


def test_a_stream_tells_everything_and_ends_with_the_job(service, client, job):
    heard = []
    thread = threading.Thread(target=watch, args=(client, job, heard))
    thread.start()
    service.until_waiting(job["id"], 1)
    service.claim_job(job["id"])
    client.post(f"/v1/jobs/{job['id']}:cancel")
    with service.client() as other:
        assert other.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelling"
    with service.database.transaction() as session:
        unit = session.query(Unit).filter(Unit.job_id == job["id"]).one()
        attempts.cancelled(session, unit.id, unit.token)
    service.until_woken([thread])
    assert [kind for _, kind, _ in heard] == ["queued", "running", "cancelling", "cancelled"]
    assert [number for number, _, _ in heard] == sorted(number for number, _, _ in heard)
    assert heard[1][2]["attempt"] == 1
    # Whoever lost the connection goes on where it broke, and is sent home at the end.
    rest = []
    watch(client, job, rest, **{"Last-Event-ID": str(heard[1][0])})
    assert rest == heard[2:]
    last = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(heard[-1][0])})
    assert (last.status_code, last.content) == (204, b"")


def test_a_revoked_key_ends_a_stream(service, job):
    key = service.new_key()
    heard = []
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key.text}"}, timeout=30) as own:
        thread = threading.Thread(target=watch, args=(own, job, heard))
        thread.start()
        service.until_waiting(job["id"], 1)
        with service.database.transaction() as session:
            keys.revoke(session, "alpha", key.row.id)
        with service.client() as client:
            client.post(f"/v1/jobs/{job['id']}:cancel")
        service.until_woken([thread])
    assert [kind for _, kind, _ in heard] == ["queued"]


def test_what_is_no_event_id_is_refused(client, job):
    answer = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "last-event-id")


def test_polls_and_streams_together_see_the_end(service, client, job):
    """50 long polls and 20 streams; benchmarks/http does the same with 200 and 50, and measures when."""
    ends = []

    def poll():
        answer = own.get(f"/v1/jobs/{job['id']}?wait=60")
        ends.append(answer.json()["status"])

    def stream():
        heard = []
        watch(own, job, heard)
        ends.append(heard[-1][1])

    with service.client(limits=httpx.Limits(max_connections=None)) as own:
        threads = [threading.Thread(target=poll) for _ in range(50)] + [
            threading.Thread(target=stream) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        service.until_waiting(job["id"], 70)
        assert ends == []
        client.post(f"/v1/jobs/{job['id']}:cancel")
        service.until_woken(threads)
    assert ends == ["cancelled"] * 70


@pytest.fixture
def statements(service):
    """Every statement that the API sends to read."""
    found = []
    engine = service.app.state.resources.database._reading

    def note(_connection, _cursor, statement, *_rest):
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def test_what_all_ask_after_a_change_is_asked_once_for_each_key(service, client, job, statements):
    """Of three keys: one whose many connections share an answer, one of its own, and one that was revoked meanwhile."""
    other, revoked = service.new_key(), service.new_key()
    answers = []

    def poll(key):
        headers = {"Authorization": f"Bearer {key}"}
        answers.append((key, own.get(f"/v1/jobs/{job['id']}?wait=60", headers=headers)))

    everybody = [*[service.keys["alpha"]] * 20, other.text, revoked.text]
    with service.client(limits=httpx.Limits(max_connections=None)) as own:
        threads = [threading.Thread(target=poll, args=(key,)) for key in everybody]
        threads += [threading.Thread(target=watch, args=(own, job, [])) for _ in range(10)]
        for thread in threads:
            thread.start()
        service.until_waiting(job["id"], len(threads))
        assert answers == []
        with service.database.transaction() as session:
            keys.revoke(session, "alpha", revoked.row.id)
        before = len(statements)
        service.claim_job(job["id"])
        service.until_woken(threads[: len(everybody)])
        # The streams have told of the change and wait for the next one.
        service.until_waiting(job["id"], len(threads) - len(everybody))
        asked = [one for one in statements[before:] if "FROM api_key" in one]
        client.post(f"/v1/jobs/{job['id']}:cancel")
        with service.database.transaction() as session:
            unit = session.query(Unit).filter(Unit.job_id == job["id"]).one()
            attempts.cancelled(session, unit.id, unit.token)
        service.until_woken(threads)
    told = dict(answers)
    assert [answer.status_code for _, answer in answers].count(200) == 21
    assert (told[revoked.text].status_code, told[revoked.text].json()["code"]) == (401, "unauthorized")
    # Each key's polls, and the one key's streams.
    assert len(asked) == 4


def test_a_log_has_a_line_for_each_event(client, job):
    client.post(f"/v1/jobs/{job['id']}:cancel")
    answer = client.get(f"/v1/jobs/{job['id']}/logs")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert [line.split()[1] for line in answer.text.splitlines()] == ["queued", "cancelled"]


def test_a_dry_run_tells_what_would_come_of_it(client, body):
    answer = client.post("/v1/jobs:validate", json=body)
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["valid"], plan["problem"], plan["cache"], plan["waits_for"]) == (True, None, "miss", None)
    assert plan["spec"]["limits"]["max_runtime_s"] == 1800
    assert any("Without a dataset" in warning for warning in plan["warnings"])
    expected = plan["estimate"]
    assert (expected["basis"], [step["type"] for step in expected["steps"]]) == ("shapes", ["simplify"])
    assert expected["low"] <= expected["seconds"] <= expected["high"]
    assert "which is rough" in expected["summary"]
    small = {**body, "limits": {"max_memory_mb": 256}}
    assert "max_memory_mb is 256" in client.post("/v1/jobs:validate", json=small).json()["warnings"][-1]
    refused = client.post("/v1/jobs:validate", json={**body, "recipe": {"passes": [{"type": "quantize_static"}]}})
    assert refused.status_code == 200
    plan = refused.json()
    assert not plan["valid"]
    posted = client.post("/v1/jobs", json={**body, "recipe": {"passes": [{"type": "quantize_static"}]}}).json()
    assert {**plan["problem"], "request_id": ""} == {**posted, "request_id": "", **unset(plan["problem"], posted)}
    # A body that is no job is no plan either.
    assert client.post("/v1/jobs:validate", json={**body, "recipe": {"passes": []}}).status_code == 422


def unset(told, posted):
    return {name: value for name, value in told.items() if name not in posted and value in (None, [])}


def test_a_chain_is_planned_and_accepted(client, body, job):
    following = {**body, "model": job["output_model"]}
    assert client.post("/v1/jobs:validate", json=following).json()["waits_for"] == job["id"]
    accepted = client.post("/v1/jobs", json=following)
    assert accepted.status_code == 202
    assert accepted.json()["progress"]["message"] == f"waits for the model {job['output_model']}"
    client.post(f"/v1/jobs/{job['id']}:cancel")
    ended = client.get(f"/v1/jobs/{accepted.json()['id']}").json()
    assert (ended["status"], ended["problem"]["code"]) == ("failed", "dependency_failed")
    lineage = client.get(f"/v1/models/{accepted.json()['output_model']}/lineage").json()
    assert [one["id"] for one in lineage["ancestors"]] == [job["output_model"], body["model"]]


def test_a_cancelled_job_is_tried_again(client, job):
    assert client.post(f"/v1/jobs/{job['id']}:retry").status_code == 409
    client.post(f"/v1/jobs/{job['id']}:cancel")
    headers = {"Idempotency-Key": "again"}
    answers = [client.post(f"/v1/jobs/{job['id']}:retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"] != job["id"]
    assert answers[0].json()["retry_of"] == job["id"]
    assert answers[0].headers["Location"] == f"/v1/jobs/{answers[0].json()['id']}"
