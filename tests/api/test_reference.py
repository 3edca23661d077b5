"""The page of the API's description: everything that is in it, nothing from elsewhere."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from api.reference import reference_page


class Page(HTMLParser):
    """Ids, links, and whatever a strict policy would refuse."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.refused, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.refused += [name for name in found if name == "style" or name.startswith("on")]
        self.refused += [tag] if tag in {"script", "style", "iframe", "object"} else []
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def answer(service):
    return httpx.get(service.url + "/docs", timeout=60)


def test_it_has_every_operation_and_schema_and_every_link_leads_somewhere(service, answer):
    document, page = service.app.openapi(), Page(answer.text)
    named = {operation["operationId"] for ways in document["paths"].values() for operation in ways.values()}
    assert named | {f"schema-{name}" for name in document["components"]["schemas"]} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.open == []
    inside = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    for link in set(page.links) - {f"#{name}" for name in inside}:
        assert link.startswith("/")
        assert httpx.get(service.url + link, timeout=60).status_code == 200


def test_it_needs_no_script_and_nothing_that_its_policy_refuses(answer):
    assert answer.headers["Content-Type"].startswith("text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert Page(answer.text).refused == []


def test_an_example_is_a_body_that_is_taken(service, client, answer):
    line = next(
        text for text in re.findall(r"<pre>(.*?)</pre>", answer.text) if text.endswith("$URL/v1/jobs:validate&quot;")
    )
    assert "--data-binary" not in line
    assert "&quot;kind&quot;: &quot;compress&quot;" in line


def test_who_has_it_is_told_so(service, answer):
    again = httpx.get(service.url + "/docs", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_a_description_says_is_text():
    document = {
        "info": {"title": "<b>", "version": "1", "description": "a `<script>` b"},
        "paths": {"/a<b": {"get": {"operationId": "x", "tags": ["<i>"], "description": "<img>", "responses": {}}}},
        "components": {"schemas": {"A": {"type": "string", "pattern": "<u>"}}},
    }
    page = Page(reference_page(document))
    assert page.refused == []
    assert "<code>&lt;script&gt;</code>" in reference_page(document)
    assert not re.search("<(b|i|u|img)>(?!get|GET)", reference_page(document).replace("<b>GET</b>", ""))
