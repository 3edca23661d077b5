"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and its commands are commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import engine
from onnxpress.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "skills" / "onnxpress" / "SKILL.md",
    ROOT / "examples" / "serve" / "README.md",
]
_ELSEWHERE = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(https?://[^"'> ]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Give the site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {link for page in pages for link in _ELSEWHERE.findall(page.read_text())} == set()
    assert (site / "openapi.json").stat().st_size > 1000


def test_there_is_a_page_for_every_pass_and_one_for_every_code(site):
    for item in engine.list_passes():
        assert item["summary"].split("`")[0][:40] in (site / "passes" / f"{item['type']}.html").read_text().replace(
            "&#39;", "'"
        )
    codes = set(re.findall(r"^## `(.*)`$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    assert {"model_invalid", "target_unavailable", "idempotency_key_reused", "rate_limited", "cannot_sign"} <= codes
    assert len(codes) > 60


def _blocks(page):
    return [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]


def _typed():
    lines = {line for page in PAGES for block in _blocks(page) for line in block.splitlines()}
    return sorted(line for line in lines if line.startswith("onnxpress "))


@pytest.mark.parametrize("line", _typed())
def test_every_command_is_one(line):
    _, *words = [{"NUMBER": "1"}.get(word, word) for word in shlex.split(line, comments=True)]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("onnxpress", words)


def test_every_verb_of_make_that_is_named_exists():
    verbs = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word for page in PAGES for block in _blocks(page) for word in re.findall(r"^make ([a-z]+)", block, re.MULTILINE)
    }
    assert named
    assert named <= verbs


def test_the_skill_says_when_it_is_for():
    head = (ROOT / "skills" / "onnxpress" / "SKILL.md").read_text().split("---\n")[1]
    front = yaml.safe_load(head)
    assert front["name"] == "onnxpress"
    assert 40 < len(front["description"]) <= 1024
