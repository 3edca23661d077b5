"""A person at a browser: signs in, uploads, gives a goal, watches it, reads the report, picks a point, downloads, compares.

The browser is Debian's Chromium (`apt-get install chromium`). Screenshots lie in the folder that SCREENSHOTS names, else among
pytest's own.
"""

import itertools
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import onnx
import pytest

from .test_searches import network
from .test_targets import images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium` brings it")

WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}
PATIENCE_MS = 100_000
# Of axe's findings, those that keep people from using a page.
_GRAVE = {"serious", "critical"}
# Every chart is there, and as wide as its place is now.
_DRAWN = """[...document.querySelectorAll('.chart')].every((each) => each.dataset.drawn
  && Math.abs(each.querySelector('.main-svg').clientWidth - each.clientWidth) < 2)"""


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
    """A page in a browser, with what it asked for and what it complained of."""

    def __init__(self, chromium, url, pictures):
        self.url, self.pictures = url, pictures
        self.context = chromium.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.asked, self.complaints = set(), []
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def look(self, name, *, every_way=False):
        """Look at the page wide and light, narrow and dark, or in every way; with a machine's eyes for barriers too."""
        from axe_core_python.sync_playwright import Axe

        for scheme, width in itertools.product(("light", "dark"), WIDTHS):
            if not every_way and (scheme, width) not in {("light", "wide"), ("dark", "narrow")}:
                continue
            across, down = WIDTHS[width]
            self.page.emulate_media(color_scheme=scheme)
            self.page.set_viewport_size({"width": across, "height": down})
            # Asked from here: to look again and again, a browser would have to evaluate text, which the policy forbids.
            self.until(lambda: self.page.evaluate(_DRAWN))
            self.page.screenshot(path=self.pictures / f"{name}-{width}-{scheme}.png", full_page=True)
            widest = self.page.evaluate("document.documentElement.scrollWidth")
            assert widest <= across, f"{name} is wider than {width}"
            found = Axe().run(self.page)["violations"]
            grave = [f"{each['id']}: {each['nodes'][0]['html'][:300]}" for each in found if each["impact"] in _GRAVE]
            assert not grave, (name, scheme, width, grave)
        self.page.set_viewport_size({"width": 1280, "height": 900})

    def until(self, condition):
        end = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < end
            self.page.wait_for_timeout(50)

    def close(self):
        self.context.close()


@pytest.fixture
def person(chromium, embedded, pictures):
    made = Person(chromium, embedded.url, pictures)
    yield made
    made.close()


def test_from_signing_in_to_a_picked_network(person, embedded, tmp_path):
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
    person.complaints.clear()
    page.locator("#dataset-file").set_input_files(tmp_path / "drawn.npz")
    page.get_by_text("drawn.npz is ready.").wait_for()
    page.get_by_label("The least").select_option("size")
    page.get_by_label("Lose at most").fill("70")
    # The pieces of a library come before the first candidate: time is for busy machines, candidates are what ends it.
    page.get_by_label("Search for at most").fill("60")
    page.get_by_label("Try at most").fill("3")
    page.get_by_label("Labels").fill("branch=main, commit=1a2b3c4d")
    person.look("new-job", every_way=True)
    page.get_by_role("button", name="Check").click()
    page.locator("#plan p").first.wait_for()
    page.get_by_role("button", name="Start").click()

    page.wait_for_url(re.compile("/jobs/job_"))
    search = urlsplit(page.url).path
    # Nothing is reloaded by hand: the page is told of candidates while they are tried, and of the end.
    page.locator("#live #figure-story").wait_for(state="attached")
    page.get_by_role("heading", name="Before and after").wait_for()
    person.look("report", every_way=True)

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
    assert onnx.load(picked.value.path()).graph.node
    assert urlsplit(page.url).path != search

    page.goto(f"/jobs/compare?a={search.rpartition('/')[2]}&b={urlsplit(page.url).path.rpartition('/')[2]}")
    page.get_by_role("rowheader", name="size", exact=True).wait_for()
    person.look("compare")
    for path, name in (
        ("/jobs", "jobs"),
        ("/models", "models"),
        ("/trend?label=branch%3Dmain", "trend"),
        ("/targets", "targets"),
        ("/keys", "keys"),
    ):
        page.goto(path)
        person.look(name)
    page.goto("/models")
    page.get_by_role("link", name="drawn", exact=True).click()
    page.get_by_role("button", name="Find out").click()
    page.get_by_role("group", name="Groups").wait_for()
    person.look("model")
    page.goto(search)
    page.get_by_role("link", name="graph beside the original's").click()
    page.locator("#graph svg").wait_for()
    person.look("graph")

    assert {urlsplit(each).netloc for each in person.asked if not each.startswith(("data:", "blob:"))} == {
        urlsplit(embedded.url).netloc
    }
    assert not person.complaints


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
