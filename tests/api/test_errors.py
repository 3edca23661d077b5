"""Whatever goes wrong is a problem, in a closed set of words."""

import socket
import threading

import pytest
from sqlalchemy.exc import OperationalError

from api.errors import pointer
from services.errors import CorruptError, UnavailableError

RECIPE = {"passes": [{"type": "simplify"}]}
MODEL = "mdl_" + "0" * 26


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()
    assert (told["status"], told["code"]) == (status, code)
    assert told["request_id"] == answer.headers["X-Request-Id"]
    assert told["title"]
    assert told["detail"].endswith((".", "!"))
    return told


def test_addresses_and_methods_that_do_not_exist(client):
    problem(client.get("/v1/nothing"), 404, "not_found")
    problem(client.get("/v1/models/"), 404, "not_found")
    problem(client.get("/redoc"), 404, "not_found")
    answer = client.delete("/v1/jobs")
    problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]
    problem(client.get("/v1/jobs/%00"), 400, "bad_request")
    problem(client.get("/v1/jobs?label=a%3D%00"), 400, "bad_request")


def test_nobody_waits_while_the_description_is_made_for_a_method_that_does_not_exist(service, client, monkeypatch):
    made, where = service.app.openapi, []
    monkeypatch.setattr(service.app, "openapi", lambda: where.append(threading.current_thread().name) or made())
    problem(client.delete("/v1/jobs"), 405, "method_not_allowed")
    # Not in the thread of the event loop.
    assert [name.startswith("AnyIO worker") for name in where] == [True]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, ""),
        ({"recipe": RECIPE}, "/model"),
        ({"model": "../../etc/passwd", "recipe": RECIPE}, "/model"),
        ({"model": MODEL, "recipe": {"passes": []}}, "/recipe/passes"),
        ({"model": MODEL, "recipe": {"passes": [{"type": "magic"}]}}, "/recipe/passes/0/type"),
        ({"model": MODEL, "recipe": {"passes": [{}]}}, "/recipe/passes/0/type"),
        ({"model": MODEL, "recipe": {"passes": [{"type": "simplify", "x": 1}]}}, "/recipe/passes/0/x"),
        ({"model": MODEL, "recipe": RECIPE, "extra": 1}, "/extra"),
        ({"model": MODEL, "recipe": RECIPE, "a/b~c": 1}, "/a~1b~0c"),
        ({"model": MODEL, "recipe": RECIPE, "target": {"threads": 0}}, "/target/threads"),
        ({"model": MODEL, "recipe": RECIPE, "target": {"provider": "tpu"}}, "/target/provider"),
        ({"model": MODEL, "recipe": RECIPE, "limits": {"max_memory_mb": 1e99}}, "/limits/max_memory_mb"),
        ({"model": MODEL, "recipe": RECIPE, "labels": {"a": "x\x00y"}}, "/labels/a"),
        (
            {"model": MODEL, "recipe": RECIPE, "gates": [{"metric": "top1", "rule": "max_ratio", "value": 1}]},
            "/gates/0",
        ),
        ({"model": MODEL, "recipe": RECIPE, "kind": "search"}, "/goal"),
        ({"model": MODEL, "recipe": RECIPE, "kind": "magic"}, "/kind"),
        ([], ""),
    ],
)
def test_what_is_wrong_with_a_job_is_pointed_at(client, body, at):
    told = problem(client.post("/v1/jobs", json=body), 422, "invalid")
    assert at in [one["pointer"] for one in told["errors"]], told
    assert "\x00" not in told["detail"]


def test_an_unknown_pass_is_told_the_known_ones(client):
    body = {"model": MODEL, "recipe": {"passes": [{"type": "magic"}]}}
    told = problem(client.post("/v1/jobs", json=body), 422, "invalid")
    assert len(told["errors"]) == 1
    assert "'magic'" in told["errors"][0]["detail"]
    assert "simplify" in told["errors"][0]["detail"]


@pytest.mark.parametrize("text", ["{", "", '{"a": }', "[" * 100_000, '{"model": NaN}', '"\\ud800"', "\xff"])
def test_bodies_that_are_no_job(client, text):
    answer = client.post("/v1/jobs", content=text.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 413, 422}, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_body_that_does_not_say_that_it_is_json(client):
    problem(
        client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type"
    )
    problem(client.post("/v1/jobs", content=b"{}"), 415, "unsupported_media_type")


def test_a_json_body_has_a_limit(client):
    large = {"model": MODEL, "recipe": RECIPE, "labels": {"a": "x" * (2 << 20)}}
    problem(client.post("/v1/jobs", json=large), 413, "too_large")
    chunks = iter([b" " * (1 << 19)] * 4)
    answer = client.post("/v1/jobs", content=chunks, headers={"Content-Type": "application/json"})
    problem(answer, 413, "too_large")


def test_an_answer_does_not_grow_with_what_it_is_about(client):
    words = {f"{number} {'w' * 3000}": 1 for number in range(200)}
    answer = client.post("/v1/jobs", json={"recipe": {"passes": [{"type": "simplify"}]}, **words})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 100
    assert len(answer.content) < 200_000


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=1000000", "limit"),
        ("/v1/jobs?status=lost", "status"),
        ("/v1/jobs?label=nothing", "label"),
        ("/v1/jobs?cursor=!!!", "cursor"),
        ("/v1/jobs?cursor=bWRsXzE", "cursor"),
        ("/v1/jobs/x?wait=61", "wait"),
        ("/v1/jobs/x?wait=nan", "wait"),
        ("/v1/jobs/x?wait=-1", "wait"),
        ("/v1/artifacts/xyz", "sha256"),
    ],
)
def test_a_wrong_parameter_is_named(client, path, name):
    assert name in [one["parameter"] for one in problem(client.get(path), 422, "invalid")["errors"]]


def test_a_fault_of_ours_is_told_without_its_text(service, client, caplog):
    def fail():
        raise RuntimeError("secret at /home/somebody")

    service.app.add_api_route("/test/fault", fail)
    told = problem(client.get("/test/fault"), 500, "internal_error")
    assert "secret" not in str(told)
    assert told["retryable"] is True
    # It is whole in the log, with the same request id.
    assert told["request_id"] in caplog.text
    assert "secret at /home/somebody" in caplog.text


def test_parts_that_are_away_are_503_with_a_pause(service, client):
    def locked():
        raise OperationalError("SELECT secret", {}, Exception("database is locked"))

    def away():
        raise UnavailableError("The upload cannot be stored now.")

    def damaged():
        raise CorruptError("The stored bytes are damaged.")

    service.app.add_api_route("/test/locked", locked)
    service.app.add_api_route("/test/away", away)
    service.app.add_api_route("/test/damaged", damaged)
    for path in ("/test/locked", "/test/away"):
        answer = client.get(path)
        told = problem(answer, 503, "unavailable")
        assert answer.headers["Retry-After"]
        assert told["retryable"] is True
        assert "secret" not in answer.text
    assert problem(client.get("/test/damaged"), 500, "corrupt")["retryable"] is False


def test_headers_have_a_limit(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        link.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000)
        assert b" 400 " in link.recv(1000).split(b"\r\n")[0]


def test_a_pointer_leaves_out_what_the_body_does_not_hold():
    body = {"recipe": {"passes": [{"type": "simplify"}]}, "a/b": {"~": 1}}
    assert pointer(["recipe", "passes", 0, "simplify", "level"], body) == "/recipe/passes/0/level"
    assert pointer(["recipe", "passes"], body) == "/recipe/passes"
    assert pointer(["a/b", "~"], body) == "/a~1b/~0"
    assert pointer([], body) == ""
