"""What README and docs say to type is what the command line takes, and their jobs are what the engine takes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import engine
from onnxpress.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "client/README.md", "docs/search.md", "docs/ci.md")
ALL_PAGES = (*PAGES, "docs/webhooks.md", "docs/transfers.md")


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def _typed(page):
    lines = "\n".join(_blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("onnxpress ")]


@pytest.mark.parametrize("line", sorted({line for page in ALL_PAGES for line in _typed(page)}))
def test_every_command_is_one(line):
    _, *words = [{"NUMBER": "1"}.get(word, word) for word in shlex.split(line, comments=True)]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("onnxpress", words)


@pytest.mark.parametrize("page", PAGES)
def test_the_goal_comes_first(page):
    assert "--goal" in _typed(page)[0]


def test_every_option_that_is_named_exists():
    command = typer.main.get_command(app).commands["compress"]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = set(re.findall(r"`(--[a-z0-9-]+)", (ROOT / "docs" / "search.md").read_text()))
    assert len(named) > 10
    assert named <= known


def test_jobs_are_what_the_engine_takes():
    (job,) = _blocks("docs/search.md", "json")
    body = json.loads(job)
    for about in ("model", "dataset"):
        body.pop(about)
    assert engine.read_spec(body).goal.minimise == "latency"


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / "docs" / "search.md").read_text()):
        assert (ROOT / "docs" / link).exists(), link


def _commands(command):
    if hasattr(command, "commands"):
        return [each for one in command.commands.values() for each in _commands(one)]
    return [command]


def test_options_are_in_small_letters():
    # Typer takes a placeholder that equals a parameter's name for the option itself.
    options = [name for one in _commands(typer.main.get_command(app)) for each in one.params for name in each.opts]
    assert len(options) > 100
    assert [name for name in options if name != name.lower()] == []


def test_every_command_and_option_says_what_it_is_for():
    commands = _commands(typer.main.get_command(app))
    silent = [(one.name, each.name) for one in commands for each in one.params if not (each.help or "").strip()]
    assert silent == []
    assert [one.name for one in commands if not (one.help or "").strip()] == []
