"""Jobs over HTTP, on a service without workers: the test does what a worker would do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html import escape

import httpx
import pytest

import engine
import models
from services import attempts, queue, workers
from services.artifacts import NewFile
from services.claims import Answer, Result
from services.storage import open_store

SIMPLIFY = {"passes": [{"type": "simplify"}]}


@pytest.fixture(scope="module")
def model(service):
    with service.client() as client:
        return service.ready_model(client)


@pytest.fixture(scope="module")
def dataset(service):
    with service.client() as client:
        return service.ready_dataset(client)


@pytest.fixture
def body(model):
    return {"model": model, "recipe": SIMPLIFY}


def new_job(client, body, **headers):
    answer = client.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def report_of(service, job):
    """The smallest valid report."""
    facts = {"sha256": "0" * 64, "size_bytes": 100, "parameters": 10, "nodes": 2, "ops": {}}
    return engine.Report.model_validate(
        {
            "summary": "Nothing was gained.",
            "unchanged": True,
            "target": {},
            "original": facts,
            "compressed": facts,
            "steps": [],
            "size": {"original": 100, "compressed": 100},
            "quality": [],
            "latency": None,
            "memory": None,
            "verdict": {"outcome": "none"},
            "calibration_samples": 0,
            "held_out_samples": 0,
            "environment": {
                "cpu": "x",
                "cpu_flags": [],
                "cores": 1,
                "onnxruntime": "1",
                "provider": "cpu",
                "python": "3",
                "system": "linux",
            },
            "seconds": 1.0,
        }
    )


def finish(service, job_id, unknown=()):
    claim = service.claim_job(job_id)
    store = open_store(service.settings)
    with service.database.transaction() as session:
        assert queue.progress(
            session, claim.unit_id, claim.token, [{"type": "step_started", "step": 0, "pass": "simplify"}]
        )
    report = report_of(service, job_id)
    reports = {**engine.report_files(report), "report.md": b"# Report\n"}
    reports = {name: content for name, content in reports.items() if name not in unknown}
    files = {"model.onnx": b"small", **reports}
    written = {}
    for name, content in files.items():
        written[name] = store.writer("alpha", limit=1 << 20)
        written[name].write(content)
        written[name].finish()
    result = Result(
        Answer(report, "network", engine.Inspection.model_validate(service.inspection)),
        (NewFile("model.onnx", written["model.onnx"]),),
        tuple(NewFile(name, written[name]) for name in reports),
    )
    with service.database.transaction() as session:
        assert attempts.finish(session, store, claim.unit_id, claim.token, result)


def test_a_job_is_accepted_and_tells_where_to_look(client, body, dataset):
    answer = client.post("/v1/jobs", json={**body, "dataset": dataset, "labels": {"branch": "main"}})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert (job["status"], job["verdict"], job["kind"]) == ("queued", "none", "compress")
    assert job["steps"] == [{"index": 0, "type": "simplify", "status": "waiting"}]
    assert job["spec"]["limits"]["max_memory_mb"] == 4096
    assert client.get(answer.headers["Location"]).json() | {"queue": None} == job
    # The output's id is known before there is an output.
    output = client.get(f"/v1/models/{job['output_model']}").json()
    assert (output["state"], output["parent"], output["job"]) == ("pending", body["model"], job["id"])
    waiting = client.get(job["links"]["output"])
    assert (waiting.status_code, waiting.json()["code"]) == (409, "model_pending")
    early = client.get(f"/v1/jobs/{job['id']}/report")
    assert (early.status_code, early.json()["code"]) == (409, "report_pending")


def test_the_same_key_and_body_are_one_job_even_at_once(service, client, body):
    def post(_):
        return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post("/v1/jobs", json={**body, "labels": {"a": "b"}}, headers={"Idempotency-Key": "same"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    # Without a key each request is a job; another tenant's key is another key.
    assert new_job(client, body)["id"] != new_job(client, body)["id"]


def test_jobs_are_listed_by_status_and_label_page_by_page(client, body):
    made = [new_job(client, {**body, "labels": {"run": "list", "n": str(n)}})["id"] for n in range(5)]
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        params = {"label": "run=list", "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/jobs", params=params).json()
        seen += [one["id"] for one in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert seen == made[::-1]
    assert pages == 3
    both = client.get("/v1/jobs", params={"label": ["run=list", "n=3"]}).json()["items"]
    assert [one["id"] for one in both] == [made[3]]
    assert set(client.get(f"/v1/jobs/{made[3]}").json()) - set(both[0]) == {"spec", "steps", "warnings"}
    assert client.get("/v1/jobs", params={"label": "run=list", "status": "succeeded"}).json()["items"] == []
    assert len(client.get("/v1/jobs", params={"label": "run=list", "status": "queued"}).json()["items"]) == 5


def test_a_queued_job_is_cancelled_at_once(client, body):
    job = new_job(client, body)
    cancelled = client.post(f"/v1/jobs/{job['id']}:cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["problem"]["code"] == "cancelled"
    assert client.post(f"/v1/jobs/{job['id']}:cancel").status_code == 200
    output = client.get(f"/v1/models/{job['output_model']}").json()
    assert (output["state"], output["problem"]["code"]) == ("rejected", "dependency_failed")


def test_a_running_job_is_cancelling_first(service, client, body):
    job = new_job(client, body)
    service.claim_job(job["id"])
    answer = client.post(f"/v1/jobs/{job['id']}:cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelling"), answer.text


def test_the_result_the_report_and_the_bytes(service, client, body):
    job = new_job(client, body)
    finish(service, job["id"])
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["status"], done["verdict"]) == ("succeeded", "none")
    assert done["finished_at"]
    output = client.get(f"/v1/models/{job['output_model']}").json()
    assert output["state"] == "ready"
    assert client.get(done["links"]["output"]).content == b"small"
    report = client.get(done["links"]["report"])
    assert report.headers["Content-Type"] == "application/json"
    assert engine.Report.model_validate(report.json()).unchanged
    text = client.get(done["links"]["report"], headers={"Accept": "text/markdown"})
    assert text.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert text.text.startswith("# Report\n")
    assert client.get(f"/v1/jobs/{job['id']}/report.md").content == text.content
    assert f"job `{job['id']}`" in text.text
    page = client.get(f"/v1/jobs/{job['id']}/report.html")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert job["id"] in page.text
    assert len(page.content) <= 6_000_000
    assert client.get(f"/v1/jobs/{job['id']}/report.json").content == report.content
    junit = client.get(f"/v1/jobs/{job['id']}/report.junit.xml")
    assert junit.headers["Content-Type"] == "application/xml"
    assert 'failures="0"' in junit.text
    figures = client.get(f"/v1/jobs/{job['id']}/report.prom")
    assert figures.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'onnxpress_report_verdict{outcome="none"} 1' in figures.text
    assert client.get(f"/v1/jobs/{job['id']}/report.exe").status_code == 404
    assert client.get(done["links"]["report"], headers={"Accept": "image/png"}).status_code == 406
    known = {"If-None-Match": report.headers["ETag"]}
    assert client.get(done["links"]["report"], headers=known).status_code == 304
    late = client.post(f"/v1/jobs/{job['id']}:cancel")
    assert (late.status_code, late.json()["code"]) == (409, "already_final")


def test_a_format_that_the_writer_did_not_know_is_missed_alone(service, client, body):
    job = client.post("/v1/jobs", json=body).json()
    finish(service, job["id"], unknown={"report.prom"})
    missing = client.get(f"/v1/jobs/{job['id']}/report.prom")
    assert (missing.status_code, missing.json()["code"]) == (404, "report_format_missing")
    assert client.get(f"/v1/jobs/{job['id']}/report.json").status_code == 200
    assert client.get(f"/v1/jobs/{job['id']}/report.junit.xml").status_code == 200


def test_every_format_has_a_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    for form in engine.REPORT_FORMATS:
        assert f"/v1/jobs/{{job_id}}/report.{form}" in paths


def test_a_job_answers_with_every_network_that_it_makes(client, body):
    job = client.post("/v1/jobs", json=body).json()
    assert job["outputs"] == [{"name": "model", "model": job["output_model"]}]
    assert client.get(f"/v1/jobs/{job['id']}").json() | {"queue": None} == job
    profile = client.post("/v1/jobs", json={"kind": "profile", "model": body["model"], "targets": [{}]}).json()
    assert (profile["output_model"], profile["outputs"]) == (None, [])


def test_recipes_by_name_are_listed_estimated_and_taken(service, client, body, dataset):
    items = client.get("/v1/recipes").json()["items"]
    assert [item["name"] for item in items] == ["small", "fast", "fastest"]
    assert {step["type"] for step in items[0]["passes"]} >= {"prune_channels", "distill"}
    for_model = client.get("/v1/recipes", params={"model": body["model"], "dataset": dataset}).json()["items"]
    assert [item["name"] for item in for_model] == [item["name"] for item in items]
    assert client.get("/v1/recipes", params={"model": "mdl_" + "0" * 26}).status_code == 404
    assert client.get("/v1/recipes", params={"provider": "abacus"}).status_code == 422
    asked = {"model": body["model"], "dataset": dataset, "recipe": "fast"}
    planned = client.post("/v1/jobs:validate", json=asked).json()
    assert planned["valid"], planned
    assert planned["spec"]["recipe"]["name"] == "fast"
    unknown = client.post("/v1/jobs", json={**asked, "recipe": "fastets"})
    assert unknown.status_code == 422
    assert "there is small, fast, fastest" in unknown.text
    without = client.post("/v1/jobs:validate", json={**asked, "dataset": None}).json()
    assert (without["valid"], without["problem"]["code"]) == (False, "spec_invalid")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_student_or_a_teacher_is_named_shown_and_checked(service, client, body, dataset, role):
    other = service.ready_model(client)
    learning = {**body, "dataset": dataset, "recipe": {"passes": [{"type": "distill"}]}, role: other}
    assert client.post("/v1/jobs:validate", json=learning).json()["valid"]
    job = new_job(client, learning)
    assert (job["model"], job[role]) == (body["model"], other)
    refused = client.post("/v1/jobs", json={**learning, role: "mdl_" + "0" * 26})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, f"/{role}")
    plain = client.post("/v1/jobs:validate", json={**body, role: other}).json()
    assert (plain["valid"], plain["problem"]["code"]) == (False, "spec_invalid")
    assert "no step of its recipe teaches" in plain["problem"]["detail"]


def test_a_job_may_name_data_of_its_own_to_be_judged_on(service, client, body, dataset):
    judge = service.ready_dataset(client, b"to judge on")
    job = client.post("/v1/jobs", json={**body, "dataset": dataset, "judge": judge}).json()
    assert (job["dataset"], job["judge"]) == (dataset, judge)
    refused = client.post("/v1/jobs", json={**body, "judge": "dst_" + "0" * 26})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/judge")


@pytest.fixture
def live_worker(service):
    """A worker like the one that the reports of these tests come from, gone at the end."""
    target = {"provider": "cpu", "cpu": "x", "flags": [], "onnxruntime": "1"}
    more = {"host": "h", "pid": 1, "queues": ["run.cpu"], "concurrency": 1, "isolation": "none"}
    with service.database.transaction() as session:
        workers.heartbeat(session, "wrk_cache", targets=[target], **more)
    yield
    with service.database.transaction() as session:
        session.delete(session.get_one(models.Worker, "wrk_cache"))


def test_the_same_job_again_is_answered_at_once_and_says_so(service, client, body, live_worker):
    body = {**body, "gates": [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.9, "level": "warn"}]}
    first = new_job(client, body)
    assert first["cache"] == "miss"
    finish(service, first["id"])
    assert client.post("/v1/jobs:validate", json=body).json()["cached_from"] == first["id"]
    again = new_job(client, body)
    assert (again["status"], again["cache"], again["cached_from"]) == ("succeeded", "hit", first["id"])
    assert client.get(again["links"]["output"]).content == b"small"
    assert client.get(again["links"]["report"]).content == client.get(f"/v1/jobs/{first['id']}/report").content
    fresh = new_job(client, {**body, "cache": "refuse"})
    assert (fresh["status"], fresh["cache"]) == ("queued", "refused")
    assert new_job(client, {**body, "priority": 7})["priority"] == 7


def test_a_dry_run_says_how_many_samples_a_gate_takes(client, body, dataset):
    gates = [
        {"metric": "top1_agreement", "rule": "min", "value": 0.999},
        {"metric": "sqnr_db", "rule": "min", "value": 9},
    ]
    plan = client.post("/v1/jobs:validate", json={**body, "dataset": dataset, "gates": gates}).json()
    assert plan["valid"], plan["problem"]
    (found,) = plan["gate_samples"]
    assert (found["gate"], found["needed"]) == ("top1_agreement", 3221)
    assert found["judging"] < 3221
    assert any("cannot pass on the" in text for text in plan["warnings"])


def test_a_queued_job_has_its_place_and_a_weak_etag(client, body):
    first, second = (client.post("/v1/jobs", json={**body, "cache": "refuse"}).json()["id"] for _ in range(2))
    listed = {job["id"]: job["queue"] for job in client.get("/v1/jobs").json()["items"]}
    answer = client.get(f"/v1/jobs/{second}")
    assert answer.json()["queue"] == listed[second] == {**listed[first], "ahead": listed[first]["ahead"] + 1}
    assert answer.headers["ETag"].startswith("W/")
    client.post(f"/v1/jobs/{first}:cancel")
    # Nothing has happened to the job itself, and yet it is another answer.
    closer = client.get(f"/v1/jobs/{second}", headers={"If-None-Match": answer.headers["ETag"]})
    assert closer.json()["queue"] == listed[first]
    client.post(f"/v1/jobs/{second}:cancel")
    ended = client.get(f"/v1/jobs/{second}")
    assert (ended.json()["queue"], ended.headers["ETag"].startswith('"')) == (None, True)


def test_a_poll_with_the_known_etag_is_304(client, body):
    job = new_job(client, body)
    first = client.get(f"/v1/jobs/{job['id']}")
    again = client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": '"other"'}).status_code == 200
    started = time.monotonic()
    waited = client.get(f"/v1/jobs/{job['id']}?wait=0.4", headers={"If-None-Match": first.headers["ETag"]})
    assert waited.status_code == 304
    assert time.monotonic() - started > 0.35


def test_everybody_who_waits_hears_of_a_change(service, client, body):
    job = new_job(client, body)
    etag = client.get(f"/v1/jobs/{job['id']}").headers["ETag"]
    heard = []

    def wait(n):
        known = {"If-None-Match": etag} if n % 2 else {}
        answer = own.get(f"/v1/jobs/{job['id']}?wait=60", headers=known)
        heard.append(answer.json()["status"])

    threads = [threading.Thread(target=wait, args=(n,)) for n in range(40)]
    own = service.client(limits=httpx.Limits(max_connections=None))
    for thread in threads:
        thread.start()
    service.until_waiting(job["id"], 40)
    # Whoever waits holds up nobody else.
    assert client.get("/livez").status_code == 200
    assert heard == []
    client.post(f"/v1/jobs/{job['id']}:cancel")
    service.until_woken(threads)
    own.close()
    assert heard == ["cancelled"] * 40
    # There is nothing to wait for any more.
    last = threading.Thread(target=client.get, args=(f"/v1/jobs/{job['id']}?wait=60",))
    last.start()
    service.until_woken([last])


def test_a_job_for_an_unknown_or_unchecked_model(client, body):
    unknown = client.post("/v1/jobs", json={**body, "model": "mdl_" + "0" * 26})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_reference")
    assert unknown.json()["errors"][0]["pointer"] == "/model"
    raw = {"Content-Type": "application/octet-stream"}
    fresh = client.post("/v1/models", content=b"unchecked", headers=raw).json()["id"]
    early = client.post("/v1/jobs", json={**body, "model": fresh})
    assert (early.status_code, early.json()["code"]) == (409, "model_not_ready")


def test_what_network_data_and_spec_cannot_do_together(client, body, dataset):
    missing = client.post("/v1/jobs", json={**body, "recipe": {"passes": [{"type": "quantize_static"}]}})
    assert (missing.status_code, missing.json()["code"]) == (422, "spec_invalid")
    assert missing.json()["step"] == 0
    assert "dataset" in missing.json()["detail"]
    target = client.post("/v1/jobs", json={**body, "target": {"provider": "cuda"}})
    assert (target.status_code, target.json()["code"]) == (422, "target_unavailable")
    assert "cpu" in target.json()["hint"]
    gate = {"metric": "top5", "rule": "max_drop", "value": 0.01}
    wrong = client.post("/v1/jobs", json={**body, "dataset": dataset, "gates": [gate]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "spec_invalid")


def test_passes_and_targets(client):
    passes = client.get("/v1/passes").json()["items"]
    assert {"simplify", "quantize_static"} <= {one["type"] for one in passes}
    one = client.get("/v1/passes/quantize_static").json()
    assert one in passes
    assert one["schema"]["properties"]["type"]["const"] == "quantize_static"
    assert client.get("/v1/passes/magic").status_code == 404
    assert client.get("/v1/targets").json() == {"items": [], "unavailable": [], "workers": []}


def test_a_changed_limit_of_costs_is_judged_by_what_was_measured(service, client, live_worker):
    body = {"model": service.ready_model(client, b"judged anew"), "recipe": SIMPLIFY}

    def gated(rule, value, metric="size_bytes"):
        return {**body, "gates": [{"metric": metric, "rule": rule, "value": value}]}

    first = new_job(client, gated("max_ratio", 0.95))
    finish(service, first["id"])
    tighter = gated("max_ratio", 1e-6)
    assert client.post("/v1/jobs:validate", json=tighter).json()["cached_from"] == first["id"]
    again = new_job(client, tighter)
    assert (again["status"], again["cache"], again["verdict"]) == ("succeeded", "hit", "fail")
    assert again["summary"]["gates"][0]["value"] == 1e-6
    report = client.get(again["links"]["report"]).json()
    assert (report["verdict"]["outcome"], len(report["verdict"]["gates"])) == ("fail", 1)
    assert "FAIL" in client.get(f"/v1/jobs/{again['id']}/report.md").text
    assert client.get(again["links"]["output"]).content == b"small"
    # Who asks for something else asks for other work.
    assert new_job(client, gated("max", 5.0, "latency_p99"))["cache"] == "miss"


def test_a_job_that_ended_without_a_result_has_a_report_that_says_so(client, body):
    job = new_job(client, body)["id"]
    assert client.get(f"/v1/jobs/{job}/report.md").json()["code"] == "report_pending"
    client.post(f"/v1/jobs/{job}:cancel")
    # A list tells it in the words that one job does.
    listed = {one["id"]: one["problem"] for one in client.get("/v1/jobs", params={"limit": 200}).json()["items"]}
    assert listed[job] == client.get(f"/v1/jobs/{job}").json()["problem"]
    text = client.get(f"/v1/jobs/{job}/report.md").text
    assert text.startswith("# The compress job was cancelled\n")
    assert f"job `{job}`" in text
    junit = client.get(f"/v1/jobs/{job}/report.junit.xml")
    assert 'errors="1"' in junit.text
    known = {"If-None-Match": junit.headers["ETag"]}
    assert client.get(f"/v1/jobs/{job}/report.junit.xml", headers=known).status_code == 304
    assert 'unfinished{status="cancelled"} 1' in client.get(f"/v1/jobs/{job}/report.prom").text
    told = client.get(f"/v1/jobs/{job}/report.json").json()
    assert (told["version"], told["kind"], told["job_kind"], told["status"]) == (
        1,
        "unfinished",
        "compress",
        "cancelled",
    )
    assert (told["code"], told["reason"]) == ("cancelled", listed[job]["message"])
    assert client.get(f"/v1/jobs/{job}/report").json() == told
    page = client.get(f"/v1/jobs/{job}/report.html")
    assert page.headers["Content-Disposition"] == f'attachment; filename="{job}.html"'
    assert "<h1>The compress job was cancelled</h1>" in page.text
    assert escape(told["reason"]) in page.text
    assert "<script" not in page.text
