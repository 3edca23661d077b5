"""The log of a process: one JSON object per line, which says which job and unit it is about, of bounded length and number."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from settings import Settings

# Of a word, such as an address that somebody made up; and of a message or a trace.
WORD_LETTERS, TEXT_LETTERS = 500, 16_000
# What strangers can cause, line for line: so many at once of a kind, and so many more each second.
BURST, PER_S = 200, 20.0
_KINDS = 1000
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
# A key, or what webhooks are signed with, ends up in an address, and with it in the log, when somebody pastes it there. A key's
# id stays, to revoke it by.
_SECRETS = re.compile(r"(opk_[0-9a-z]+_|whsec_)[0-9A-Za-z+/=]{8,}")

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 - nobody writes into it


@contextmanager
def about(**names: str | None) -> Iterator[None]:
    """Have every line that is logged in the block carry these names, such as `job="job_..."`."""
    token = _about.set({**_about.get(), **{name: value for name, value in names.items() if value is not None}})
    try:
        yield
    finally:
        _about.reset(token)


class Bounded(logging.Filter):
    """Lets no kind of line flood the log: what has no room is counted, and the next line of its kind says how many were left out.

    A kind is a logger with a message before its words are filled in. A record with `always` set passes: one for each request of
    a key, which has a rate of its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # How many more may pass, as of when, and how many did not.
        self._kinds: dict[tuple[str, int, str], tuple[float, float, int]] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is written."""
        if getattr(record, "always", False):
            return True
        kind = (record.name, record.levelno, str(record.msg)[:WORD_LETTERS])
        with self._lock:
            now = self._clock()
            left, at, left_out = self._kinds.pop(kind, (float(BURST), now, 0))
            left = min(BURST, left + (now - at) * PER_S)
            passes = left >= 1
            self._kinds[kind] = (left - 1, now, 0) if passes else (left, now, left_out + 1)
            if len(self._kinds) > _KINDS:
                del self._kinds[next(iter(self._kinds))]
        if passes and left_out:
            record.left_out = left_out
        return passes


def _cut(text: str, most: int) -> str:
    """Leave secrets out, and keep the start and the end of what is too long: a trace says at its end what it is about."""
    text = _SECRETS.sub(r"\1***", text)
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half} letters ... {text[-half:]}"


class JsonLines(logging.Formatter):
    """A line per record; a message that is a JSON object already, such as the access log's, is merged into it."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {
                name: _cut(value, WORD_LETTERS) if isinstance(value, str) else value for name, value in fields.items()
            }
        else:
            line["message"] = _cut(record.getMessage(), TEXT_LETTERS)
        line |= _about.get()
        if left_out := getattr(record, "left_out", 0):
            line["left_out"] = left_out
        if record.exc_info:
            line["trace"] = _cut(self.formatException(record.exc_info), TEXT_LETTERS)
        return json.dumps(line, default=str)


class Text(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name in the standard library
        """Give the line without its trace; what a stranger has written cannot pass for another line, or colour a terminal."""
        names = dict(_about.get())
        if left_out := getattr(record, "left_out", 0):
            names["left_out"] = str(left_out)
        said = _cut(super().formatMessage(record), TEXT_LETTERS).translate(_CONTROLS)
        return said + "".join(f" {name}={value}" for name, value in names.items())

    def formatException(self, ei: Any) -> str:  # noqa: N802 - its name in the standard library
        """Give a trace, cut where it is very long."""
        return _cut(super().formatException(ei), TEXT_LETTERS)


def configure(settings: Settings) -> None:
    """Have the whole process log to stderr as the settings say."""
    output = logging.StreamHandler()
    output.addFilter(Bounded())
    output.setFormatter(JsonLines() if settings.log_format == "json" else Text())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[output], force=True)
