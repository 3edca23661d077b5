"""Whatever comes out of a child's pipe is an object that can be stored, or is refused as garbled."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import messages
from sandbox.messages import GarbledError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def nested(depth):
    return b'{"type":"progress","message":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"3", b"null", b"nonsense", b"\xff\xfe{}", b'{"a":', nested(100_000), nested(900), nested(70),
        b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":' + b"9" * 5000 + b"}", b'{"a":' + b"9" * 60 + b"}",
        b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'{"a":"\\u0000"}', b'{"type":"progress","a":"' + b"x" * (65 << 10) + b'"}',
        b'{"a":[' + b"[]," * (1 << 20) + b"[]]}", b'{"\xed\xa0\x80":1}',
    ],
    ids=lambda line: repr(line[:30]),
)  # fmt: skip
def test_what_cannot_be_stored_is_garbled(line):
    with pytest.raises(GarbledError):
        messages.read(line)


def test_what_a_child_says_is_read():
    told = {"type": "progress", "step": 3, "fraction": 0.5, "message": "ä 😀", "pass": None, "deep": [[{"a": [1]}]]}
    assert messages.read(json.dumps(told).encode()) == told
    report = {"type": "result", "ok": True, "value": {"text": "x" * (1 << 20)}}
    assert messages.read(json.dumps(report).encode()) == report


@given(VALUES)
def test_any_value_is_read_as_it_is_or_refused(value):
    line = json.dumps({"value": value}).encode()
    try:
        told = messages.read(line)
    except GarbledError:
        return
    # Both databases take it.
    assert json.loads(json.dumps(told, allow_nan=False)) == {"value": value}
    json.dumps(told, ensure_ascii=False).encode()


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\n", b"{", b'{"type":"result"}\n', b"[" * 5000])))
def test_any_bytes_in_any_parts_are_lines_or_refused(parts):
    lines, found = messages.Lines(), []
    for part in parts:
        found += lines.feed(part)
    assert found == b"".join(parts).split(b"\n")[:-1]
    for line in found:
        try:
            assert isinstance(messages.read(line), dict)
        except GarbledError:
            continue


def test_a_line_without_end_is_garbled():
    lines = messages.Lines()
    for _ in range(messages.RESULT_LIMIT >> 16):
        assert list(lines.feed(b"x" * (64 << 10))) == []
    with pytest.raises(GarbledError):
        list(lines.feed(b"x"))


def test_many_events_at_once_are_taken_and_a_flood_is_not():
    rate = messages.Rate()
    for _ in range(2000):
        rate.take()
    taken = 0
    with suppress(GarbledError):
        for taken in range(20_000):  # noqa: B007 - how far it came
            rate.take()
    assert taken < 10_000
