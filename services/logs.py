"""The log of a process: one JSON object per line, which says which job and unit it is about."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from settings import Settings

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 - nobody writes into it


@contextmanager
def about(**names: str | None) -> Iterator[None]:
    """Have every line that is logged in the block carry these names, such as `job="job_..."`."""
    token = _about.set({**_about.get(), **{name: value for name, value in names.items() if value is not None}})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """A line per record; a message that is a JSON object already, such as the access log's, is merged into it."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        message = record.getMessage()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= fields if isinstance(fields, dict) else {"message": message}
        line |= _about.get()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Text(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        names = " ".join(f"{name}={value}" for name, value in _about.get().items())
        return f"{super().format(record)}{' ' if names else ''}{names}"


def configure(settings: Settings) -> None:
    """Have the whole process log to stderr as the settings say."""
    output = logging.StreamHandler()
    output.setFormatter(JsonLines() if settings.log_format == "json" else Text())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[output], force=True)
