"""The same edge on Postgres: keys and tenants, idempotency at once, labels, long polls."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from settings import Settings


@pytest.fixture
def service(new_service, postgres_url, tmp_path):
    with new_service(Settings(data_dir=tmp_path, database_url=postgres_url)) as made:
        yield made


def test_the_edge_on_postgres(service, client, stranger):
    model = service.ready_model(client)
    body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}, "labels": {"branch": "main"}}
    assert stranger.get(f"/v1/models/{model}").status_code == 404
    assert stranger.post("/v1/jobs", json=body).status_code == 422

    def post(_):
        return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(post, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    job = answers[0].json()["id"]
    assert [one["id"] for one in client.get("/v1/jobs?label=branch=main").json()["items"]] == [job]
    assert client.get("/v1/jobs?label=branch=dev").json()["items"] == []

    heard = []
    poll = threading.Thread(target=lambda: heard.append(client.get(f"/v1/jobs/{job}?wait=60").json()["status"]))
    poll.start()
    service.until_waiting(job, 1)
    assert client.post(f"/v1/jobs/{job}:cancel").status_code == 200
    service.until_woken([poll])
    assert heard == ["cancelled"]
    # A NUL never reaches the database, which would fail on it.
    assert client.get("/v1/jobs/%00").status_code == 400
    assert client.post("/v1/jobs", json={**body, "labels": {"a": "\x00"}}).status_code == 422
