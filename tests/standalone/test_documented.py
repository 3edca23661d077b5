"""docs/operations.md says what is: its commands parse, its settings exist, its files are there."""

import os
import re
import shlex
from pathlib import Path

import pytest

from settings import Settings
from standalone.__main__ import _parser, main
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


# What is not typed here goes on until it is stopped, or is typed elsewhere.
ELSEWHERE = {
    "serve": "tests/standalone/test_serve.py",
    "api": "tests/api/test_process.py",
    "worker": "tests/worker",
    "doctor": "tests/e2e/test_doctor.py",
}


def test_the_page_is_typed_in_its_order(tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("ONNXPRESS_")]:
        monkeypatch.delenv(name)
    typed = set()
    for line in (line for block in BLOCKS for line in block.splitlines() if line.startswith("onnxpress-server ")):
        _, *words = shlex.split(line, comments=True)
        if words[0] not in ELSEWHERE:
            words = [re.sub("^/(srv|backup)/", f"{tmp_path}/", word) for word in words]
            # Settings are read once in a process.
            words += [] if "--data" in words else ["--data", str(tmp_path / "var")]
            assert main(words) == 0, (line, capsys.readouterr().err)
            typed.add(words[0])
    assert typed == {"migrate", "keys", "tenants", "backup", "restore", "prune"}
    assert all((ROOT / named).exists() for named in ELSEWHERE.values())


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


def _parsers(parser):
    yield parser
    for action in parser._actions:
        for each in (action.choices or {}).values() if action.nargs == "A..." else ():
            yield from _parsers(each)


def test_every_option_says_what_it_is_for():
    parsers = [*_parsers(_parser()), worker_parser(Settings())]
    silent = [
        (parser.prog, action.dest)
        for parser in parsers
        for action in parser._actions
        if not action.help and action.nargs != "A..."
    ]
    assert (len(parsers) > 15, silent) == (True, [])
