"""Requests come through where that is safe, and errors say what the service said."""

import socket
import time
from types import SimpleNamespace

import pytest

import onnxpress
from onnxpress import transport
from onnxpress.configuration import Patience, find_access
from onnxpress.transport import ApiRequest


def said(document, status=200, **headers):
    return {"status": status, "json": document, "headers": {key.replace("_", "-"): one for key, one in headers.items()}}


BUSY = said({"title": "Service Unavailable", "status": 503, "code": "unavailable", "detail": "busy"}, 503)
PASSES = said({"items": [{"type": "simplify"}]})
JOB = {"id": "job_1", "status": "queued", "kind": "compress"}


def test_a_get_is_repeated_while_the_service_is_away(scripted, client):
    scripted.on(
        "GET", "/passes", BUSY, {"body": b"{}", "cut": 1}, {"status": 502, "body": b"<html>bad gateway</html>"}, PASSES
    )
    assert client.passes() == [{"type": "simplify"}]
    assert len(scripted.requests) == 4


def test_retry_after_is_honoured(scripted, client):
    busy = said({"title": "Too Many Requests", "status": 429}, 429, Retry_After="1")
    scripted.on("GET", "/passes", busy, PASSES)
    started = time.monotonic()
    client.passes()
    assert time.monotonic() - started >= 1.0


def test_come_back_at_once_is_not_taken_by_its_word(scripted, monkeypatch):
    slept = []
    # Its own clock: the server's threads sleep too.
    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    hasty = said({"title": "Too Many Requests", "status": 429}, 429, Retry_After="0")
    scripted.on("GET", "/passes", *[hasty] * 6, PASSES)
    with onnxpress.Client(scripted.url, patience=60) as client:
        client.passes()
    assert len(slept) == 6
    assert slept[0] >= 0.1
    assert min(slept[3:]) >= 0.9


def test_patience_is_longer_once_the_service_has_answered(scripted):
    found = transport.Transport(find_access(scripted.url), patience=Patience(30, 120))
    assert found.patience == 30
    scripted.on("GET", "/passes", PASSES)
    found.json(ApiRequest("GET", "/passes"))
    assert found.patience == 120
    found.close()


def test_no_error_repeats_a_password_of_the_address(scripted):
    url = scripted.url.replace("http://", "http://me:hunter2@")
    scripted.on("GET", "/passes", {"body": b"[]"})
    with onnxpress.Client(url) as client:
        assert "hunter2" not in client.url
        with pytest.raises(onnxpress.UnexpectedAnswerError) as caught:
            client.passes()
    assert "hunter2" not in str(caught.value)
    with (
        onnxpress.Client("http://me:hunter2@127.0.0.1:9", patience=0) as client,
        pytest.raises(onnxpress.UnreachableError) as away,
    ):
        client.passes()
    assert "hunter2" not in str(away.value)


def test_a_key_in_the_clear_is_warned_of():
    with pytest.warns(onnxpress.PlaintextWarning, match="press.example is not encrypted"):
        onnxpress.Client("http://me:hunter2@press.example", "opk_x").close()
    # Nothing to read: no key goes there.
    onnxpress.Client("http://press.example").close()


def test_a_pause_longer_than_patience_is_not_slept(scripted, client):
    scripted.on("GET", "/passes", said({"title": "Too Many Requests", "status": 429}, 429, Retry_After="60"))
    started = time.monotonic()
    with pytest.raises(onnxpress.UnavailableError):
        client.passes()
    assert time.monotonic() - started < 60
    assert len(scripted.requests) == 1


def test_a_submit_is_repeated_under_one_key(scripted, client):
    scripted.on("POST", "/jobs", BUSY, {"body": b"{}", "cut": 0}, said(JOB, 202))
    assert client.jobs.submit({"kind": "compress"}).id == "job_1"
    keys = {request.headers["Idempotency-Key"] for request in scripted.requests}
    assert len(scripted.requests) == 3
    assert len(keys) == 1


def test_a_submit_that_is_in_flight_elsewhere_is_asked_for_again(scripted, client):
    conflict = said({"title": "Conflict", "status": 409, "code": "idempotency_in_flight"}, 409)
    scripted.on("POST", "/jobs", conflict, said(JOB, 202))
    assert client.jobs.submit({}).id == "job_1"


@pytest.mark.parametrize("answer", [BUSY, {"body": b"{}", "cut": 1}])
def test_a_post_without_a_key_is_sent_once(scripted, client, answer):
    scripted.on("POST", "/anything", answer)
    with pytest.raises(onnxpress.ServiceError):
        client._transport.json(ApiRequest("POST", "/anything", body={}))
    assert len(scripted.requests) == 1


def test_a_connection_that_never_came_about_may_carry_any_post():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    told = []
    with (
        onnxpress.Client(url, patience=0.5, on_retry=lambda reason, pause: told.append(pause)) as client,
        pytest.raises(onnxpress.UnreachableError, match="cannot be reached"),
    ):
        client._transport.json(ApiRequest("POST", "/anything", body={}))
    assert told, "it was tried again"


def test_errors_carry_the_problem_details(scripted, client):
    document = {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "code": "invalid",
        "detail": "The request is not valid.",
        "request_id": "req_1",
        "retryable": False,
        "hint": "look there",
        "errors": [
            {"pointer": "/recipe/passes/0", "detail": "Unknown type."},
            {"parameter": "wait", "detail": "Too long."},
        ],
    }
    scripted.on("POST", "/jobs", said(document, 422))
    with pytest.raises(onnxpress.InvalidError) as caught:
        client.jobs.submit({})
    problem = caught.value.problem
    assert (problem.code, problem.status, problem.request_id) == ("invalid", 422, "req_1")
    assert problem.errors == (
        onnxpress.Fault("/recipe/passes/0", "Unknown type."),
        onnxpress.Fault("wait", "Too long."),
    )
    assert str(caught.value).splitlines()[1] == "  /recipe/passes/0: Unknown type."
    assert problem.to_document() == document


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, onnxpress.InvalidError),
        (401, onnxpress.AuthenticationError),
        (403, onnxpress.AuthenticationError),
        (404, onnxpress.NotFoundError),
        (409, onnxpress.ConflictError),
        (413, onnxpress.InvalidError),
        (418, onnxpress.RequestRefusedError),
        (500, onnxpress.UnavailableError),
    ],
)
def test_each_status_has_its_error(scripted, client, status, kind):
    scripted.on("GET", "/jobs/job_1", said({"title": "No", "status": status}, status))
    with pytest.raises(kind):
        client.jobs.get("job_1")
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]"])
def test_an_answer_that_is_none_of_ours_is_named(scripted, client, body):
    scripted.on("GET", "/passes", {"body": body})
    with pytest.raises(onnxpress.UnexpectedAnswerError, match="is this an onnxpress service"):
        client.passes()


def test_every_request_carries_the_key(scripted, client):
    scripted.on("GET", "/passes", PASSES)
    client.passes()
    assert scripted.requests[0].headers["Authorization"] == "Bearer opk_test_secret"
    assert scripted.requests[0].headers["User-Agent"].startswith("onnxpress/")


def test_lists_follow_the_cursor_and_end_at_the_limit(scripted, client):
    first = said({"items": [{**JOB, "id": f"job_{n}"} for n in (3, 2)], "next_cursor": "abc"})
    last = said({"items": [{**JOB, "id": "job_1"}], "next_cursor": None})
    scripted.on("GET", "/jobs", first, last)
    assert [job.id for job in client.jobs.list(status="queued")] == ["job_3", "job_2", "job_1"]
    assert [request.path for request in scripted.requests] == [
        "/v1/jobs?status=queued&limit=200",
        "/v1/jobs?status=queued&limit=200&cursor=abc",
    ]
    scripted.on("GET", "/jobs", first)
    assert [job.id for job in client.jobs.list(limit=1)] == ["job_3"]
    assert scripted.requests[-1].path == "/v1/jobs?limit=1"


def test_a_wait_ends_at_its_deadline_though_the_service_is_silent(scripted, client):
    scripted.on("GET", "/jobs/job_1", said({**JOB, "status": "running"}), {"silent": True})
    started = time.monotonic()
    with pytest.raises(onnxpress.WaitTimeoutError, match="still running") as caught:
        client.jobs.wait("job_1", timeout=0.5)
    assert 0.4 < time.monotonic() - started < 10
    assert caught.value.job is not None
    assert caught.value.job.status == "running"


def test_updates_ask_for_changes_only(scripted, client):
    running, done = {**JOB, "status": "running"}, {**JOB, "status": "succeeded"}
    scripted.on(
        "GET",
        "/jobs/job_1",
        said(running, ETag='"1"'),
        {"status": 304, "headers": {"ETag": '"1"'}},
        BUSY,
        said(done, ETag='"2"'),
    )
    assert [job.status for job in client.jobs.updates("job_1")] == ["running", "succeeded"]
    first, *later = scripted.requests
    assert "wait" not in first.path
    assert all("wait=30" in request.path and request.headers["If-None-Match"] == '"1"' for request in later)


def test_a_failed_job_is_an_error_that_says_why(scripted, client):
    problem = {
        "code": "memory_limit",
        "class": "user",
        "retryable": False,
        "message": "4096 MiB were not enough",
        "step": 1,
    }
    scripted.on("GET", "/jobs/job_1", said({**JOB, "status": "failed", "problem": problem}))
    with pytest.raises(onnxpress.JobFailedError, match="4096 MiB were not enough") as caught:
        client.jobs.wait("job_1")
    assert (caught.value.problem.code, caught.value.problem.step) == ("memory_limit", 1)
