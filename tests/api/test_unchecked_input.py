"""Whatever stands in a request, the answer is never that the service failed, and a refusal says what is wrong."""

import base64
import copy
import hashlib
import json
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

RAW = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
CONTENT = b"the bytes of a network"
SHA256 = hashlib.sha256(CONTENT)
RIGHT = f"sha-256=:{base64.b64encode(SHA256.digest()).decode()}:"
# What Python's JSON parser takes, and next to nothing else does.
ODD_TEXTS = st.sampled_from(["\ud800", "a\udfffb", "\0", "x\0y", "\ud83d\ud83d"])
ODD_NUMBERS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 10**400, -(2**63) - 1, 2**64])
DIGITS = st.text("0123456789", max_size=30)
# Few over HTTP at every run, many when new ones are looked for.
FEW = settings.get_current_profile_name() != "fuzz"
a_few = settings(max_examples=25 if FEW else 500)


@pytest.fixture(scope="module")
def asked(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(service, asked):
    return service.ready_model(asked, CONTENT)


@pytest.fixture(scope="module")
def job(asked, model):
    """A job that has ended."""
    body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
    made = asked.post("/v1/jobs", json=body).json()["id"]
    assert asked.post(f"/v1/jobs/{made}:cancel").status_code == 200
    return made


def places(value, at=()):
    """Every place in a document where something else could stand."""
    yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*at, number))


def changed(document, at, value, *, as_name=False):
    made = copy.deepcopy(document)
    if not at:
        return {value: made} if as_name else value
    *way, last = at
    inside = made
    for step in way:
        inside = inside[step]
    if as_name and isinstance(inside, dict):
        inside[value] = inside.pop(last)
    else:
        inside[last] = value
    return made


BODY = {
    "kind": "compress",
    "recipe": {"passes": [{"type": "prune_channels", "widths": {"conv": 3}}, {"type": "simplify"}]},
    "target": {"provider": "cpu", "threads": 1, "batch": 1, "shapes": {"x": [1, 4]}},
    "limits": {"max_runtime_s": 60.0},
    "gates": [{"metric": "latency", "rule": "max_ratio", "value": 1.0}],
    "labels": {"branch": "main"},
    "priority": 0,
}
KEY = {"name": "ci", "scopes": ["read"], "expires_at": "2040-01-01T00:00:00Z"}
CHANGES = {"name": "net", "tags": ["int8"], "alias": "production"}


def sent(document, *, escaped):
    """Write what no strict writer would."""
    if escaped:
        return json.dumps(document).encode()
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert len(answer.json()["detail"]) > 15
    return answer


@a_few
@given(st.data())
def test_odd_values_anywhere_in_a_body(service, asked, model, data):
    path, method, document = data.draw(
        st.sampled_from(
            [
                ("/v1/jobs", "POST", {"model": model, **BODY}),
                ("/v1/jobs:validate", "POST", {"model": model, **BODY}),
                (f"/v1/models/{model}", "PATCH", CHANGES),
                ("/v1/models", "POST", {"blob": SHA256.hexdigest()}),
            ]
        )
    )
    at = data.draw(st.sampled_from(list(places(document))))
    odd = data.draw(ODD_TEXTS | ODD_NUMBERS)
    as_name = isinstance(odd, str) and data.draw(st.booleans())
    content = sent(changed(document, at, odd, as_name=as_name), escaped=data.draw(st.booleans()))
    answer = check(asked.request(method, path, content=content, headers=JSON))
    if not isinstance(odd, int):
        assert answer.status_code in {400, 422}


def test_half_a_character_is_named_where_it_stands(asked, model):
    body = changed({"model": model, **BODY}, ("target", "shapes"), {"\ud800": [1, 4]})
    answer = check(asked.post("/v1/jobs", content=json.dumps(body).encode(), headers=JSON))
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/target/shapes"]


def test_nesting_without_an_end(asked):
    for content in (b"[" * 500_000, b'{"a":' * 150_000, b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}"):
        assert check(asked.post("/v1/jobs", content=content, headers=JSON)).status_code in {400, 413, 422}


@pytest.mark.parametrize(
    ("before", "each", "after"),
    [
        ('{"recipe": "fast", "gates": [', "{}", "]}"),
        ('{"recipe": {"passes": [', "{}", "]}}"),
        ('{"recipe": "fast", ', '"k%d": 1', "}"),
        ('{"recipe": "fast", "target": {"shapes": {', '"k%d": 1', "}}}"),
    ],
)
def test_more_values_than_anybody_needs_are_not_told_wrong_one_by_one(asked, before, each, after):
    def body(count):
        return f"{before}{','.join(each % i if '%' in each else each for i in range(count))}{after}".encode()

    over = check(asked.post("/v1/jobs:validate", content=body(50_000), headers=JSON))
    assert (over.status_code, over.json()["code"]) == (413, "too_large")
    # Of fewer a hundred are told, and how many there are.
    told = check(asked.post("/v1/jobs:validate", content=body(4000), headers=JSON)).json()
    assert len(told["errors"]) == 100
    assert int(told["detail"].split(" errors in all")[0].split()[-1]) >= 4000


def test_who_has_no_key_sends_no_more_than_a_form(asked):
    form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    answer = httpx.post(asked.base_url.join("/sign-in"), content=b"key=" + b"%41" * 10_000, headers=form)
    assert answer.status_code == 413


@a_few
@given(DIGITS, DIGITS, st.sampled_from([1, 200]))
@example("1", "9", 5000)
@example("0", "", 5000)
@example("", "3", 5000)
def test_ranges_of_any_length(asked, model, first, last, times):
    byte_range = f"bytes={first * times}-{last * times}"[:20_000]
    answer = check(asked.get(f"/v1/models/{model}/content", headers={"Range": byte_range}))
    assert answer.status_code in {200, 206, 416}
    assert CONTENT.find(answer.content) >= 0 or answer.status_code == 416


def test_a_range_with_zeros_in_front_is_that_range(asked, model):
    answer = asked.get(f"/v1/models/{model}/content", headers={"Range": f"bytes={'0' * 5000}4-{'0' * 5000}9"})
    assert (answer.status_code, answer.content) == (206, CONTENT[4:10])


@a_few
@given(DIGITS.filter(bool).map(lambda digits: digits[:20]))
@example("9" * 20)
@example(str(2**63))
def test_events_after_any_number(asked, job, last):
    answer = check(asked.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": last}))
    assert answer.status_code in {200, 204}


@pytest.fixture(scope="module")
def admin(service):
    text = service.new_key(scopes=("admin",)).text
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {text}"}) as made:
        yield made


@a_few
@given(
    st.datetimes() | st.sampled_from([datetime.min, datetime.max]),  # noqa: DTZ901 - in the zone that comes behind it
    st.from_regex(r"\A[+-](0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]\Z"),
)
@example(datetime.max, "-23:59")  # noqa: DTZ901
@example(datetime.min, "+23:59")  # noqa: DTZ901
def test_keys_that_expire_at_any_time(admin, moment, zone):
    body = {"name": "ci", "scopes": ["read"], "expires_at": f"{moment.isoformat()}{zone}"}
    answer = check(admin.post("/v1/keys", json=body))
    assert answer.status_code in {201, 422}
    if answer.status_code == 201:
        told = datetime.fromisoformat(answer.json()["expires_at"])
        assert told == datetime.fromisoformat(body["expires_at"])
        assert told.utcoffset() == datetime.now(UTC).utcoffset()


@a_few
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
@example("sha-256")
@example("sha-256=:AAAA:")
@example("sha-256=abc")
@example("SHA-256=:AAAA:")
@example("sha-256=:!!!!:")
@example(f"sha-512=:AAAA:, {RIGHT[:-2]}:")
def test_no_digest_is_passed_over_that_cannot_be_read(asked, text):
    for name in ("Repr-Digest", "Content-Digest"):
        answer = check(asked.post("/v1/models", content=CONTENT, headers={**RAW, name: text}))
        others_alone = all("=:" in one and not one.strip().startswith("sha-256=") for one in text.split(",") if one)
        assert answer.status_code == 400 or not text.strip() or others_alone


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Repr-Digest": RIGHT}, 201),
        ({"Repr-Digest": f"sha-512=:AAAA:, {RIGHT};kept=1"}, 201),
        ({"Repr-Digest": RIGHT, "Content-Digest": RIGHT}, 201),
        ({"Repr-Digest": "sha-512=:AAAA:"}, 201),
        ({"Repr-Digest": RIGHT, "Content-Digest": f"sha-256=:{'A' * 43}=:"}, 400),
        ({"Repr-Digest": f"sha-256=:{'A' * 43}=:"}, 400),
        ({"Repr-Digest": RIGHT.replace("=:", "=", 1)}, 400),
    ],
)
def test_what_digests_are_taken(asked, headers, status):
    answer = check(asked.post("/v1/models", content=CONTENT, headers={**RAW, **headers}))
    assert answer.status_code == status, answer.text


def test_a_failed_job_says_whose_fault_it_is_by_the_described_name(service, asked, job):
    described = service.app.openapi()["components"]["schemas"]["Fault"]
    assert {"code", "class", "retryable", "message"} <= set(described["required"])
    for told in (asked.get(f"/v1/jobs/{job}").json(), asked.get("/v1/jobs").json()["items"][0]):
        assert set(described["required"]) <= set(told["problem"]) <= set(described["properties"])


@pytest.mark.parametrize("outputs", ['{"y": {"kind": "\\ud800"}}', '{"\\u0000": {}}', '{"y": NaN}', '{"y": 1e999}'])
def test_declared_outputs_that_are_no_json(asked, outputs):
    answer = check(asked.post("/v1/datasets", params={"outputs": outputs}, content=b"x", headers=RAW))
    assert answer.status_code == 422
