"""Where words go: ids and JSON to stdout for programs, everything else to stderr for people; and how a command ends."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from onnxpress.client import Client
from onnxpress.errors import (
    AuthenticationError,
    JobFailedError,
    OnnxpressError,
    PlaintextWarning,
    WaitTimeoutError,
)
from onnxpress.exit_codes import ExitCode, code_of
from onnxpress.formatting import duration
from onnxpress.terminal_text import safe_text

# Of a log file, which has no width of its own.
LOG_WIDTH = 120


def people() -> Console:
    """Give the console on stderr."""
    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
    return Console(stderr=True, width=width, highlight=False, emoji=False)


def tell(text: str, style: str = "") -> None:
    """Say one thing to people."""
    people().print(safe_text(text, style))


def give(text: str) -> None:
    """Give one line to programs, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def give_json(document: Mapping[str, Any]) -> None:
    """Give the one JSON document of a command with `--json`."""
    give(json.dumps(document, indent=2, ensure_ascii=False))


@contextmanager
def session(url: str | None, *, as_json: bool = False) -> Iterator[Client]:
    """Give the client of one command, and turn what goes wrong into words and an exit code."""
    try:
        with _client(url) as client:
            yield client
    except OnnxpressError as error:
        raise _end(error, as_json=as_json) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def _client(url: str | None) -> Client:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PlaintextWarning)
        client = Client(url, on_retry=_tell_retry)
    for warning in caught:
        tell(f"warning: {warning.message}", "yellow")
    return client


@contextmanager
def failing() -> Iterator[None]:
    """Turn what goes wrong in a command that asks no service into words and an exit code."""
    try:
        yield
    except OnnxpressError as error:
        raise _end(error, as_json=False) from error


def _end(error: OnnxpressError, *, as_json: bool) -> typer.Exit:
    code = code_of(error)
    tell(f"onnxpress: {error}", "red")
    if isinstance(error, AuthenticationError):
        tell(
            "The key is read from ONNXPRESS_API_KEY, the file ONNXPRESS_KEY_FILE, or ./var/admin.key of a local service."
        )
    if error.problem.request_id:
        tell(f"request id: {error.problem.request_id}", "dim")
    job = error.job if isinstance(error, JobFailedError | WaitTimeoutError) else None
    goes_on = job.id if job is not None and not job.finished else error.job_id
    if goes_on is not None:
        tell(f"The job is not lost; wait for it again: {wait_again(goes_on)}")
    if as_json:
        found = {"job": job.document} if job else {"job_id": error.job_id} if error.job_id else {}
        give_json({"error": error.problem.to_document(), **found, "exit_code": int(code)})
    return typer.Exit(code)


def wait_again(job_id: str) -> str:
    """Give the command that goes on waiting for a job."""
    return f"onnxpress wait {job_id}"


def _tell_retry(reason: str, pause: float) -> None:
    tell(f"{reason}; trying again in {duration(pause)}", "yellow")


def interrupt_on_sigterm() -> None:
    """Treat SIGTERM, by which CI systems end a step, like Ctrl-C: the remote job is cancelled."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
