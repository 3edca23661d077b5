"""What a child says, read as the word of somebody hostile: bounded in length, depth, number, rate and kind of value."""

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

# A result may be a report on thousands of nodes; all else is a line for people.
RESULT_LIMIT = 16 << 20
EVENT_LIMIT = 64 << 10
# What is said and not yet asked for.
UNREAD_LIMIT = 10_000
UNREAD_BYTES = 4 << 20
_DEEPEST = 64
_MOST_VALUES = 1 << 20
_MOST_BITS = 128
_EVENTS_PER_S, _EVENTS_AT_ONCE = 500.0, 5_000.0
# Neither can be stored as text: half a character, and the character that ends a string in C.
_NO_TEXT = re.compile("[\ud800-\udfff\0]")


class GarbledError(Exception):
    """What the child said is nothing that a child says."""


@dataclass
class Lines:
    """Cuts what comes out of a pipe into lines, none of which is longer than a result."""

    _partial: bytearray = field(default_factory=bytearray)

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Give the lines that this part completes; raises GarbledError for one that is too long."""
        *ends, rest = part.split(b"\n")
        for end in ends:
            self._add(end)
            yield bytes(self._partial)
            self._partial.clear()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._partial += part
        if len(self._partial) > RESULT_LIMIT:
            raise GarbledError(f"a line of more than {RESULT_LIMIT >> 20} MiB")


@dataclass
class Rate:
    """Events that may still come: many at once, not many for long."""

    _left: float = _EVENTS_AT_ONCE
    _seen: float = field(default_factory=time.monotonic)

    def take(self) -> None:
        """Count an event; raises GarbledError for a flood."""
        now = time.monotonic()
        self._left = min(_EVENTS_AT_ONCE, self._left + (now - self._seen) * _EVENTS_PER_S) - 1
        self._seen = now
        if self._left < 0:
            raise GarbledError(f"more than {_EVENTS_PER_S:.0f} events a second")


def read(line: bytes) -> dict[str, Any]:
    """Give the object in a line: of a known size and depth, without text or numbers that cannot be stored.

    Raises:
        GarbledError: for anything else, and for whatever JSON readers differ in.
    """
    # Before reading: a line of brackets takes fifty times its size as lists.
    if line.count(b",") + line.count(b"[") + line.count(b"{") > _MOST_VALUES:
        raise GarbledError(f"more than {_MOST_VALUES} values in a line")
    try:
        told = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise GarbledError(f"no JSON: {type(error).__name__}") from None
    if not isinstance(told, dict):
        raise GarbledError("no JSON object")
    _check(told)
    if told.get("type") != "result" and len(line) > EVENT_LIMIT:
        raise GarbledError(f"an event of more than {EVENT_LIMIT >> 10} KiB")
    return told


def _refuse(constant: str) -> NoReturn:
    raise GarbledError(f"the number {constant}")


def _check(told: dict[str, Any]) -> None:
    level: list[Any] = [told]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_scalar(name)
                below += value.values()
            elif isinstance(value, list):
                below += value
            else:
                _check_scalar(value)
        if not below:
            return
        level = below
    raise GarbledError(f"deeper than {_DEEPEST} levels")


def _check_scalar(value: str | float | bool | None) -> None:
    if isinstance(value, str):
        if _NO_TEXT.search(value):
            raise GarbledError("text that cannot be stored")
    elif isinstance(value, float):
        # 1e999 is JSON, and no number.
        if not math.isfinite(value):
            raise GarbledError("a number beyond all bounds")
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise GarbledError(f"a number of more than {_MOST_BITS} bits")
