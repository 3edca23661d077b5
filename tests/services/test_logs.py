"""Lines of the log are of bounded length and number, whoever causes them."""

import json
import logging

import pytest

from services.logs import BURST, PER_S, TEXT_LETTERS, WORD_LETTERS, Bounded, JsonLines, Text


def record(message="%s came", *words, name="onnxpress.test", level=logging.WARNING, **more):
    made = logging.LogRecord(name, level, __file__, 1, message, words, None)
    vars(made).update(more)
    return made


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_kind_of_line_that_floods_is_counted_instead():
    clock = Clock()
    bounded = Bounded(clock)
    passed = [bounded.filter(record("%s came", number)) for number in range(10 * BURST)]
    assert passed == [True] * BURST + [False] * (9 * BURST)
    # Others are none of its business, nor those that always pass.
    assert bounded.filter(record("%s went", 1))
    assert bounded.filter(record("%s came", 1, name="onnxpress.other"))
    assert bounded.filter(record("%s came", 1, always=True))
    clock.now = 1.0
    later = [record("%s came", number) for number in range(100)]
    assert sum(map(bounded.filter, later)) == PER_S
    assert json.loads(JsonLines().format(later[0]))["left_out"] == 9 * BURST
    assert "left_out=" in Text().format(later[0])
    assert "left_out" not in JsonLines().format(later[1])


def test_strangers_cannot_have_kinds_kept_for_them_without_end():
    bounded = Bounded(Clock())
    for number in range(5000):
        bounded.filter(record(f"template {number}"))
    assert len(bounded._kinds) <= 1000


@pytest.mark.parametrize("form", [JsonLines, Text])
def test_a_line_is_of_bounded_length(form):
    try:
        int("x" * 10 * TEXT_LETTERS)
    except ValueError as error:
        failed = record("y" * 10 * TEXT_LETTERS, exc_info=(type(error), ValueError("x" * 10 * TEXT_LETTERS), None))
    line = form().format(failed)
    assert len(line) < 3 * TEXT_LETTERS
    assert "letters" in line
    fields = {"path": "/" + "z" * 10 * WORD_LETTERS, "status": 404}
    assert len(JsonLines().format(record("%s", "", fields=fields))) < 2 * WORD_LETTERS


def test_what_a_stranger_writes_is_no_line_of_its_own():
    line = Text().format(record("%s came", "a\n2026-01-01 ERROR onnxpress made up \x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\n" not in JsonLines().format(record("%s came", "a\nb"))


@pytest.mark.parametrize("form", [JsonLines, Text])
def test_a_key_that_somebody_wrote_somewhere_is_not_in_the_log(form):
    key = "opk_01jc3f9w3e8q4m2y7d5t6v8xbn_" + "5ec2e7" * 8
    path = f"/v1/models/{key}"
    lines = [record("request failed: %s", path), record("%s", "", fields={"path": path, "status": 404})]
    lines += [record("failed", exc_info=(ValueError, ValueError(f"no such model: {key}"), None))]
    # Where a line is cut, too.
    lines += [record("%s", "a" * (TEXT_LETTERS // 2 - 60) + key + "b" * TEXT_LETTERS)]
    lines += [record("%s", f"signed with whsec_{'5ec2e7' * 8}")]
    for line in map(form().format, lines):
        assert "5ec2e7" not in line
    # What revokes it stays.
    assert "opk_01jc3f9w3e8q4m2y7d5t6v8xbn_***" in form().format(lines[0])
