"""docs/operations.md says what is: its commands parse, its settings exist, its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from settings import Settings
from standalone.__main__ import _parser
from standalone.docs import _settings
from worker.__main__ import _parser as worker_parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = sorted({line for block in BLOCKS for line in block.splitlines() if line.startswith("onnxpress-server ")})
VERBS = re.findall(r"^\| (`[a-z][^|]*`) \|", PAGE.split("## Sizes")[0], re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    _, *words = shlex.split(command)
    if words[0] == "worker":
        worker_parser(Settings()).parse_args(words[1:])
    else:
        assert callable(_parser().parse_args(words).run)


def test_every_verb_is_documented():
    told = {verb.split()[0] for cell in VERBS for verb in re.findall(r"`([^`]+)`", cell)}
    known = next(action for action in _parser()._actions if action.dest == "verb").choices
    assert told == set(known) - {"demo", "docs"}


def test_every_setting_that_is_named_exists():
    named = set(re.findall(r"ONNXPRESS_([A-Z_]+[A-Z])", PAGE))
    assert len(named) > 10
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_every_setting_is_listed_with_what_it_does():
    lines = _settings().splitlines()[7:]
    assert len(lines) == len(Settings.model_fields)
    assert not [line for line in lines if re.search(r"\| +(Bounds[^|]*)?\|$", line)]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
