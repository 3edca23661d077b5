"""A person at a browser: signs in, uploads, gives a goal, watches it, reads the report, picks a point, downloads, compares.

The browser is Debian's Chromium (`apt-get install chromium`). Screenshots lie in the folder that SCREENSHOTS names, else among
pytest's own.
"""

import os
import re
import shutil
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .test_targets import images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# tests/api/test_pages.py asks for every page at every run.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium` brings it"),
]

WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}
# Each width and each scheme once.
_BOTH = (("light", "wide"), ("dark", "narrow"))
PATIENCE_MS = 240_000
# Of axe's findings, those that keep people from using a page.
_GRAVE = {"serious", "critical"}
# A chart is an image with a name: what it is drawn of, thousands of elements, nobody is told. They are put aside meanwhile.
_AXE = """async () => {
  const drawings = [...document.querySelectorAll('.chart')].map((each) => [each, [...each.childNodes]]);
  for (const [chart] of drawings) chart.replaceChildren();
  const {violations} = await axe.run({resultTypes: ['violations'], preload: false});
  for (const [chart, parts] of drawings) chart.replaceChildren(...parts);
  return violations.map(({id, impact, nodes}) => [impact, `${id}: ${nodes[0].html.slice(0, 300)}`]);
}"""
# Every chart is there, as wide as its place is now and as high as it was made.
_DRAWN = """[...document.querySelectorAll('.chart')].every((each) => each.querySelector('.main-svg')
  && Math.abs(each.querySelector('.main-svg').clientWidth - each.clientWidth) < 2
  && Math.abs(each.querySelector('.main-svg').clientHeight - each.layout.height) < 2)"""


def network():
    """One hidden layer: as little to measure as there is to search in."""
    random = np.random.default_rng(0)
    tensors = {"w1": random.normal(size=(144, 64)) / 12, "w2": random.normal(size=(64, 4)) / 8}
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in CI, Chromium refuses its own sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Person:
    """A browser with a tab or two, with what it asked for and what it complained of."""

    def __init__(self, chromium, url, pictures):
        self.url, self.pictures = url, pictures
        self.context = chromium.new_context(
            base_url=url, viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
        )
        self.asked, self.complaints = set(), []
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    def _heard(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def look(self, name, page=None, *, every_way=False):
        """Look at a page wide and light, narrow and dark, or in every way; in the first two with a machine's eyes for barriers too."""
        page = page or self.page
        others = (("dark", "wide"), ("light", "narrow")) if every_way else ()
        for scheme, width in (*_BOTH, *others):
            across, down = WIDTHS[width]
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": across, "height": down})
            # Asked from here: to look again and again, a browser would have to evaluate text, which the policy forbids.
            self.until(page, lambda: page.evaluate(_DRAWN))
            page.screenshot(path=self.pictures / f"{name}-{width}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= across, f"{name} is wider than {width}"
            if (scheme, width) in _BOTH:
                self.barriers(page, (name, scheme, width))
        page.set_viewport_size({"width": 1280, "height": 900})

    def barriers(self, page, where):
        """Hold a page to what axe-core knows of barriers."""
        if not page.evaluate("window.axe !== undefined"):
            page.evaluate(_axe_script())
        grave = [told for impact, told in page.evaluate(_AXE) if impact in _GRAVE]
        assert not grave, (*where, grave)

    def until(self, page, condition):
        end = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < end
            page.wait_for_timeout(50)

    def close(self):
        self.context.close()


@cache
def _axe_script():
    from axe_core_python.sync_playwright import Axe

    return Axe().axe_script


@pytest.fixture
def person(chromium, embedded, pictures):
    made = Person(chromium, embedded.url, pictures)
    yield made
    made.close()


def test_from_signing_in_to_a_picked_network(person, embedded, client, tmp_path):
    page = person.page
    page.goto("/")
    person.look("sign-in")
    page.get_by_label("API key").fill(embedded.key_file.read_text())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs")

    page.goto("/jobs/new")
    # The first connection that sends a piece breaks; the upload goes on by itself.
    broken = []

    def break_once(route):
        if route.request.method == "PATCH" and not broken:
            broken.append(route.request.url)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/v1/uploads/*", break_once)
    (tmp_path / "drawn.onnx").write_bytes(network())
    (tmp_path / "drawn.npz").write_bytes(images())
    page.locator("#model-file").set_input_files(tmp_path / "drawn.onnx")
    page.get_by_text("drawn.onnx is ready.").wait_for()
    assert broken
    page.unroute("**/v1/uploads/*")
    person.complaints.clear()
    page.locator("#dataset-file").set_input_files(tmp_path / "drawn.npz")
    page.get_by_text("drawn.npz is ready.").wait_for()
    page.get_by_label("The least").select_option("size")
    page.get_by_label("Lose at most").fill("70")
    # The pieces of a library come before the first candidate: time is for busy machines, candidates are what ends it.
    page.get_by_label("Search for at most").fill("600")
    page.get_by_label("Try at most").fill("1")
    page.get_by_label("Labels").fill("branch=main, commit=1a2b3c4d")
    page.get_by_role("button", name="Check").click()
    page.locator("#plan p").first.wait_for()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/jobs/job_"))
    search = urlsplit(page.url).path
    # A page that hears of the end loads itself again, as a report: not before it was looked at as what goes on.
    ended = []

    def hold_the_end(route):
        response = route.fetch()
        if "data-final" in response.text():
            ended.append((route, response))
        else:
            route.fulfill(response=response)

    parts = re.compile(re.escape(f"{search}?part=true") + "$")
    page.route(parts, hold_the_end)

    # What can be looked at while it goes on, in another tab.
    other = person.tab()
    queued_behind(search, client, person, other)
    for path in ("jobs/new", "models", "targets", "keys"):
        other.goto(f"/{path}")
        person.look(path.replace("/", "-"), other)
    other.goto("/models")
    other.get_by_role("link", name="drawn", exact=True).click()
    other.get_by_role("button", name="Find out").click()
    # Either it comes, or why not is said and the button may be pressed again.
    other.get_by_role("group", name="Groups").or_(other.locator("#analyse:enabled")).first.wait_for()
    assert other.get_by_role("group", name="Groups").is_visible(), other.locator("#analyse-said").text_content()
    person.look("model", other)
    # Nothing is reloaded by hand: the page is told of candidates while they are tried, and of the end.
    page.locator("#live #figure-story").wait_for(state="attached")
    person.look("live")
    person.until(page, lambda: ended)
    for route, response in ended:
        route.fulfill(response=response)
    page.get_by_role("heading", name="Before and after").wait_for()
    page.unroute(parts, hold_the_end)
    with page.expect_download() as first:
        page.get_by_role("link", name="Download the network").click()
    assert onnx.load(first.value.path()).graph.node

    point = page.locator("#figure-front .scatterlayer .trace .point").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle, steps=5)
    page.locator("#figure-front .hoverlayer .hovertext").first.wait_for()
    page.mouse.click(*middle)
    page.get_by_role("dialog").wait_for()
    with page.expect_download() as picked:
        page.get_by_role("button", name="Make it and download").click()
        # The report that it was picked from, while the network is made.
        other.goto(search)
        person.look("report", other, every_way=True)
        with other.expect_download() as kept:
            other.get_by_role("link", name="one HTML file").click()
        kept.value.save_as(tmp_path / "report.html")
        opens_anywhere(person, tmp_path / "report.html")
        other.get_by_role("link", name="graph beside the original's").click()
        other.locator("#graph svg").wait_for()
        person.look("graph", other)
    assert onnx.load(picked.value.path()).graph.node
    assert urlsplit(page.url).path != search

    page.goto(f"/jobs/compare?a={search.rpartition('/')[2]}&b={urlsplit(page.url).path.rpartition('/')[2]}")
    page.get_by_role("rowheader", name="size", exact=True).wait_for()
    person.look("compare")
    page.goto("/trend?label=branch%3Dmain")
    person.look("trend")

    assert {urlsplit(each).netloc for each in person.asked if not each.startswith(("data:", "blob:"))} == {
        urlsplit(embedded.url).netloc
    }
    assert not person.complaints


def queued_behind(search, client, person, other):
    """Look at jobs that wait behind a running one: whose turn is before, when they may begin; and cancel them."""
    running = client.get(f"/v1{search}").json()
    asked = {"model": running["model"], "recipe": {"passes": [{"type": "simplify"}]}, "cache": "refuse"}
    # All that the search does next goes before them.
    queued = [client.post("/v1/jobs", json={**asked, "priority": -1}).json()["id"] for _ in range(2)]
    other.goto(f"/jobs/{queued[1]}")
    # By itself: nothing happens to this job, and nobody knows how long others take before the first of them has ended.
    other.get_by_text(re.compile(r"Behind \d others, begins in about \d+ s\.")).wait_for()
    person.look("queued", other)
    other.goto("/jobs")
    other.get_by_text(re.compile(r"Behind \d others, begins in about \d+ s\.")).first.wait_for()
    person.look("jobs", other)
    other.get_by_role("button", name="Cancel the job of drawn").first.click()
    other.locator("#rows li").first.get_by_text("cancelled", exact=True).wait_for()
    client.post(f"/v1/jobs/{queued[0]}:cancel").raise_for_status()


def opens_anywhere(person, file):
    """Look at a report that was kept, in a browser that reaches nobody: its charts follow the window, and keep their height."""
    assert file.stat().st_size < 6_000_000
    reader = Person(person.context.browser, None, person.pictures)
    reader.context.set_offline(True)
    reader.page.goto(file.as_uri())
    reader.look("kept", every_way=True)
    assert reader.page.locator(".chart").count() > 4
    assert reader.asked == {file.as_uri()}
    assert not reader.complaints
    reader.close()


def test_a_page_that_is_not_there_helps(person, embedded):
    page = person.page
    page.goto("/jobs/job_" + "0" * 26)
    page.get_by_label("API key").fill("opk_wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.get_by_label("API key").fill(embedded.key_file.read_text())
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="There is nothing here").wait_for()
    person.look("missing")
    # By the keyboard alone: the first stop leads past the navigation.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
