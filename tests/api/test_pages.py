"""Pages: what they show and to whom, without a browser; tests/e2e/test_browser.py has one."""

import json
import re
from html.parser import HTMLParser

import httpx
import pytest

import engine
from api.pages.assets import address
from services import attempts
from services.artifacts import NewFile
from services.claims import Answer, Result
from services.problems import problem
from services.storage import open_store
from tests.api.conftest import INSPECTION, _finished
from tests.report_documents import report
from tests.search_reports import search_report

HTML = {"Accept": "text/html"}
COMPRESS = {"kind": "compress", "recipe": {"passes": [{"type": "simplify"}]}}
SEARCH = {"kind": "search", "goal": {"minimise": "latency"}}


def finish(service, job_id, told):
    """Do what a worker does at a job's end."""
    claim = service.claim_job(job_id)
    store = open_store(service.settings)

    def file(path, content):
        return NewFile(path, _finished(store, claim.tenant_id, content))

    answer = Answer(told, inspection=engine.Inspection.model_validate(INSPECTION))
    files = tuple(file(name, content) for name, content in engine.report_files(told).items())
    with service.database.transaction() as session:
        result = Result(answer, (file("model.onnx", b"small"),), files)
        assert attempts.finish(session, store, claim.unit_id, claim.token, result)


def submit(client, model, spec=COMPRESS, **more):
    answer = client.post("/v1/jobs", json={"model": model, "cache": "refuse", **spec, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


@pytest.fixture(scope="module")
def browser(service):
    """A client that is signed in as a browser is: by a cookie."""
    with httpx.Client(base_url=service.url, headers=HTML, timeout=30) as made:
        sign_in(made, service.keys["alpha"])
        yield made


def sign_in(client, key, **more):
    return client.post("/sign-in", data={"key": key, **more}, headers={"Origin": str(client.base_url).rstrip("/")})


@pytest.fixture(scope="module")
def model(service):
    with service.client() as client:
        return service.ready_model(client)


@pytest.fixture(scope="module")
def done(service, model):
    """A search that has ended, and a compression."""
    with service.client() as client:
        found = []
        for spec, told in (
            (SEARCH, report().model_copy(update={"search": search_report(), "kind": "search"})),
            (COMPRESS, report()),
        ):
            found.append(submit(client, model, spec, labels={"branch": "main", "commit": "1a2b3c4d"}))
            finish(service, found[-1], told)
        return found


class Page(HTMLParser):
    """What of a page matters to tests: its addresses, inline styles and scripts, and its data blocks."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.inline, self.blocks, self._block = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.addresses += [told[name] for name in ("href", "src", "action") if name in told]
        self.inline += [name for name in told if name == "style" or name.startswith("on")]
        self._block = None
        if tag == "script" and "src" not in told:
            if told.get("type") == "application/json":
                self._block = told["id"]
            else:
                self.inline.append("script")
        if tag == "style":
            self.inline.append("style")

    def handle_data(self, data):
        if self._block:
            self.blocks[self._block] = json.loads(data)
            self._block = None


ADDRESSES = ("/jobs", "/jobs/new", "/jobs/compare", "/models", "/trend", "/targets")


@pytest.mark.parametrize("path", ADDRESSES)
def test_a_page_is_for_who_is_signed_in_and_brings_its_own_policy(service, browser, path):
    with httpx.Client(base_url=service.url, headers=HTML) as stranger:
        asked = stranger.get(path)
    assert (asked.status_code, asked.headers["location"]) == (303, f"/sign-in?next={path}")
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not Page(answer.text).inline
    assert not [each for each in Page(answer.text).addresses if re.match(r"[a-z]+:|//", each)]


def test_signing_in_gives_a_cookie_that_no_script_reads_and_no_other_site_sends(service):
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        answer = sign_in(client, f"  {service.keys['alpha']}\n", next="/models")
        assert (answer.status_code, answer.headers["location"]) == (303, "/models")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/models").status_code == 200
        out = client.post("/sign-out", headers={"Origin": service.url})
        assert (out.status_code, out.headers["location"]) == (303, "/sign-in")
        assert client.get("/models").status_code == 303


def test_the_cookie_goes_over_https_only_where_the_page_came_by_it(service):
    told = {"Origin": service.url.replace("http:", "https:"), "X-Forwarded-Proto": "https"}
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        by_proxy = client.post("/sign-in", data={"key": service.keys["alpha"]}, headers=told)
        plain = sign_in(client, service.keys["alpha"])
    assert "secure" in by_proxy.headers["set-cookie"].lower()
    assert "secure" not in plain.headers["set-cookie"].lower()


@pytest.mark.parametrize("key", ["", "opk_no_such", "x" * 150])
def test_a_wrong_key_is_told_so(service, key):
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        answer = sign_in(client, key)
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("elsewhere", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_signing_in_leads_to_our_pages_only(service, elsewhere):
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        assert sign_in(client, service.keys["alpha"], next=elsewhere).headers["location"] == "/jobs"


def test_another_site_can_neither_sign_in_nor_act(service, browser, model):
    other = {"Origin": "https://evil.example"}
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        assert client.post("/sign-in", data={"key": service.keys["alpha"]}, headers=other).status_code == 403
        assert client.post("/sign-in", data={"key": service.keys["alpha"]}).status_code == 403
    job = {"model": model, **COMPRESS}
    for headers in (other, {}, {"Sec-Fetch-Site": "cross-site"}):
        answer = browser.post("/v1/jobs", json=job, headers={"Accept": "application/json", **headers})
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    # Our own pages may, and so may a program with the key itself, wherever it runs.
    for headers in ({"Origin": service.url}, {"Sec-Fetch-Site": "same-origin"}):
        assert browser.post("/v1/jobs:validate", json=job, headers=headers).status_code == 200
    with service.client() as client:
        assert client.post("/v1/jobs:validate", json=job, headers=other).status_code == 200


def test_a_revoked_key_ends_what_a_browser_may(service):
    made = service.new_key(scopes=("admin",))
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        sign_in(client, made.text)
        assert client.get("/keys").status_code == 200
        assert client.delete(f"/v1/keys/{made.row.id}", headers={"Origin": service.url}).status_code == 200
        answer = client.get("/jobs")
        assert answer.status_code == 303
        assert "expired=1" in answer.headers["location"]
        assert "no longer signed in" in client.get(answer.headers["location"]).text


def test_errors_are_pages_for_people_and_problems_for_programs(service, browser):
    missing = "/jobs/job_" + "0" * 26
    for path, status, words in (
        (missing, 404, "There is no such job"),
        ("/nothing", 404, "There is nothing at this address"),
        ("/keys", 403, "lacks the scope"),
        ("/jobs?status=sleeping", 422, "A job is never sleeping"),
        ("/trend?label=main", 422, "name=value"),
    ):
        answer = browser.get(path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"].startswith("text/html")
        assert words in answer.text
    with service.client() as client:
        assert client.get(missing.replace("/jobs", "/v1/jobs")).headers["content-type"] == "application/problem+json"


def test_names_are_text_and_no_markup(service, browser):
    with service.client() as client:
        name = "<script>alert(1)</script>"
        answer = client.post(
            "/v1/models",
            params={"name": name},
            content=b"other bytes",
            headers={"Content-Type": "application/octet-stream"},
        )
        service.inspect(answer.json()["id"], INSPECTION)
    for path in ("/models", "/jobs/new", f"/models/{answer.json()['id']}"):
        text = browser.get(path).text
        assert name not in text
        assert not Page(text).inline


def test_jobs_are_listed_with_what_came_of_them(browser, done):
    text = browser.get("/jobs?label=branch%3Dmain").text
    assert all(job in text for job in done)
    assert "400.0 kB → 100.0 kB" in text
    assert "2.00x" in text
    assert all(job not in browser.get("/jobs?label=branch%3Dother").text for job in done)
    assert all(job in browser.get("/jobs?status=succeeded&part=true").text for job in done)


def test_a_queued_job_tells_its_place_and_can_be_cancelled(service, browser, model):
    with service.client() as client:
        first, second = submit(client, model), submit(client, model)
        assert "Next in line" in browser.get(f"/jobs/{first}").text
        assert browser.get("/jobs?part=true").text.count("data-place") == 2
        assert "Behind 1 other; no worker that takes it is there now." in browser.get(f"/jobs/{second}").text
        for job in (first, second):
            answer = browser.post(f"/v1/jobs/{job}:cancel", headers={"Origin": service.url})
            assert answer.json()["status"] == "cancelled"
    assert "Try again" in browser.get(f"/jobs/{first}").text


def test_a_failed_job_says_why_and_what_to_do(service, browser, model):
    with service.client() as client:
        job = submit(client, model)
    claim = service.claim_job(job)
    told = problem("unsupported_model", "Node `odd` cannot be run.", blame="user", hint="Export it again.")
    with service.database.transaction() as session:
        attempts.fail(session, open_store(service.settings), claim.unit_id, claim.token, told)
    text = browser.get(f"/jobs/{job}").text
    assert "Node `odd` cannot be run." in text
    assert "Export it again." in text
    # What ended without a result has its reports too.
    links = [each for each in Page(text).addresses if f"/v1/jobs/{job}/report." in each]
    assert len(links) == len(engine.REPORT_FORMATS) + 1
    assert "Export it again." in browser.get(next(each for each in links if each.endswith(".html"))).text


def test_a_report_is_shown_with_its_figures_layers_and_front(browser, done):
    search, compression = (browser.get(f"/jobs/{job}").text for job in done)
    shown = Page(compression).blocks
    assert {"data-before-after", "data-latency", "data-timeline", "data-training-2", "data-sensitivity"} <= set(shown)
    assert shown["data-before-after"]["data"][0]["x"][0] == 25.0
    assert "Zeros save no time here. Leave it out." in compression
    assert "<code>body</code>" in compression
    assert 'data-pick="3"' in search
    assert {"data-front", "data-story"} <= set(Page(search).blocks)


def test_two_jobs_stand_beside_each_other(browser, done):
    text = browser.get(f"/jobs/compare?a={done[0]}&b={done[1]}").text
    assert text.count("400.0 kB → 100.0 kB, 4.00x smaller") == 2
    assert "prune_weights" in text


def test_a_label_has_a_trend(browser, done):
    text = browser.get("/trend?label=branch%3Dmain").text
    assert Page(text).blocks["data-trend-size"]["data"][0]["y"] == [100_000, 100_000]
    assert "1a2b3c4d" in text
    assert "branch%3Dmain" in browser.get("/trend").text


def test_an_alias_has_a_trend_of_what_it_has_named(service, browser, done):
    with service.client() as client:
        for job in done:
            output = client.get(f"/v1/jobs/{job}").json()["output_model"]
            assert client.put("/v1/aliases/prod", json={"model": output}).status_code == 200
    text = browser.get("/trend?label=%40prod").text
    assert len(Page(text).blocks["data-trend-size"]["data"][0]["y"]) == 2
    assert "@prod" in browser.get("/trend").text
    assert "@prod" in browser.get("/models").text
    assert "No job with this label" in browser.get("/trend?label=%40nothing").text


def test_a_model_is_shown_with_where_it_comes_from(service, browser, model, done):
    text = browser.get(f"/models/{model}").text
    assert "version 1" in text
    assert "Gemm" in text
    with service.client() as client:
        output = client.get(f"/v1/jobs/{done[1]}").json()["output_model"]
    assert output in text
    assert browser.get(f"/models/{output}/graph?beside={model}").status_code == 200


def test_pages_of_another_tenant_do_not_exist(service, done, model):
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        sign_in(client, service.keys["beta"])
        assert client.get(f"/jobs/{done[0]}").status_code == 404
        assert client.get(f"/models/{model}").status_code == 404
        assert done[0] not in client.get("/jobs").text


def test_a_key_that_only_reads_is_offered_nothing_to_change(service, done):
    made = service.new_key(scopes=("read",))
    with httpx.Client(base_url=service.url, headers=HTML) as client:
        sign_in(client, made.text)
        assert "/jobs/new" not in client.get("/jobs").text
        assert "This key only reads" in client.get("/jobs/new").text
        assert 'data-may=""' in client.get(f"/jobs/{done[0]}").text


def test_the_list_is_told_at_once_that_a_job_is_new(service, browser, model):
    with browser.stream("GET", "/jobs/events") as events:
        lines = events.iter_lines()
        assert next(lines) == "retry: 2000"
        with service.client() as client:
            job = submit(client, model)
        assert next(line for line in lines if line.startswith("event:")) == "event: changed"
    browser.post(f"/v1/jobs/{job}:cancel", headers={"Origin": service.url})


def test_styles_and_scripts_come_from_here_and_are_kept(service):
    with httpx.Client(base_url=service.url) as client:
        for name, begins in (("pages.css", b"*"), ("charts.js", b"//"), ("plotly.min.js", b"/**")):
            answer = client.get(address(name))
            assert answer.content.startswith(begins)
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["content-encoding"] == "gzip"
        assert client.get("/static/0/charts.js").headers["cache-control"] == "no-cache"
        assert client.get("/static/0/..%2Fsession.py").status_code == 404
        assert client.get("/static/0/session.py").status_code == 404
