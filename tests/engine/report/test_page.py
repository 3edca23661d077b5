"""The page that stands alone has every figure with its numbers, and asks nothing of anybody."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

from engine.report.figures.layers import layers
from engine.report.figures.of_report import figures
from engine.report.heading import Heading, with_heading
from engine.report.page import report_page, unfinished_page
from engine.report.unfinished import Unfinished
from tests.report_documents import report
from tests.search_reports import search_report

HEADING = Heading(
    "net <b>`x`", "job_1", datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "c0ffee" * 4, "http://localhost/jobs/job_1"
)
SEARCHED = report().model_copy(update={"search": search_report(), "warnings": ("<script>alert(1)</script>",)})


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.fetched += [found[name] for name in ("src", "srcset") if name in found]
        self.fetched += [found["href"]] if tag == "link" else []
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_figure_is_there_with_its_numbers():
    page = report_page(SEARCHED, HEADING, "/* plotly */")
    seen = Seen(page)
    assert seen.open == []
    assert len(seen.ids) == len(set(seen.ids))
    for figure in figures(SEARCHED):
        assert {figure.name, f"{figure.name}-caption"} <= set(seen.ids)
    assert all(f">{layer.node}</td>" in page for layer in layers(SEARCHED))
    assert page.count("<summary>The numbers</summary>") == len(figures(SEARCHED))
    for name in ("size before", "time after", "SQNR", "precision"):
        assert f'<th scope="col">{name}</th>' in page
    for cell in ("40.0 kB", "10.0 kB", "20.0 %", "31.0 dB", "\N{EN DASH}"):
        assert f">{cell}</td>" in page
    data = json.loads(re.search(r'id="figures">(.*?)</script>', page).group(1))
    assert [one["name"] for one in data] == [figure.name for figure in figures(SEARCHED)]


def test_what_it_is_to_replace_has_its_figures_behind_its_own():
    other = report().model_copy(update={"search": None})
    page = report_page(SEARCHED, HEADING, "/* plotly */", beside=(other, None))
    seen = Seen(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert {f"beside-{figure.name}" for figure in figures(other)} <= set(seen.ids)
    assert "Beside what it is to replace" in page
    data = json.loads(re.search(r'id="figures">(.*?)</script>', page).group(1))
    assert len(data) == len(figures(SEARCHED)) + len(figures(other))
    assert page.count("/* plotly */") == 1


def test_a_job_that_ended_without_a_result_has_a_page_that_says_why():
    told = Unfinished(
        job_kind="search", status="failed", code="out_of_memory", reason="<b>Too much.", hint="Take less."
    )
    page = unfinished_page(told, HEADING)
    assert Seen(page).open == []
    assert "<h1>The search job failed</h1>" in page
    assert "&lt;b&gt;Too much." in page
    assert "Take less." in page
    assert "<code>out_of_memory</code>" in page
    assert "job_1" in page


def test_it_asks_nothing_of_anybody_and_runs_nobodys_words():
    page = report_page(SEARCHED, HEADING, "/* plotly */")
    assert Seen(page).fetched == []
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "net &lt;b&gt;" in page


def test_a_heading_says_what_the_report_is_of():
    text = with_heading("# Report: pass\n\nHalf the size.\n", HEADING)
    title, _, facts, _, summary = text.splitlines()
    assert (title, summary) == ("# Report: pass", "Half the size.")
    assert facts == (
        "model `net <b>'x'`, job `job_1`, commit `c0ffeec0ffee`, 2026-01-02 03:04 UTC, [report](http://localhost/jobs/job_1)"
    )
