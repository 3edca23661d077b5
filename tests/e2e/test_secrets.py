"""A key is in its file and, as a digest, in the database; it is in no log, no event and no answer, whoever put it where."""

import httpx


def test_a_key_is_nowhere_but_in_its_file(embedded):
    key = embedded.key_file.read_text().strip()
    secret = key.rsplit("_", 1)[1]
    answers = []
    with httpx.Client(base_url=embedded.url, headers={"Authorization": f"Bearer {key}"}) as client:
        paths = ("/v1/models", f"/v1/models/{key}", f"/v1/jobs?after={key}", f"/{key}", "/v1/jobs")
        answers += [client.get(path) for path in paths]
        answers += [
            client.post("/v1/jobs", json={"model": key, "data": key}),
            client.post("/v1/jobs", content=f'{{"{key}"', headers={"Content-Type": "application/json"}),
            client.put("/v1/models", content=b"x", headers={"Idempotency-Key": "x" * 9}),
            httpx.get(f"{embedded.url}/v1/models", headers={"Authorization": f"Basic {key}"}),
            httpx.get(f"{embedded.url}/v1/models", headers={"Authorization": f"Bearer {key}x"}),
        ]
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422}
    # Only what somebody was asked for and did not have is named in the answer, to whom asked.
    assert not [answer for answer in answers if answer.status_code == 401 and secret in answer.text]
    found = [
        str(path.relative_to(embedded.data_dir))
        for path in embedded.data_dir.rglob("*")
        if path.is_file() and path != embedded.key_file and secret.encode() in path.read_bytes()
    ]
    assert found == []
