"""A job that is asked for once, and taken back when its asker is interrupted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from onnxpress.client import Client
from onnxpress.documents import Job
from onnxpress.errors import ConflictError, OnnxpressError
from onnxpress.exits import ExitCode
from onnxpress.terminal import tell


class Submission:
    """A spec with its idempotency key: sending it again gives the same job."""

    def __init__(self, client: Client, spec: Mapping[str, Any], key: str) -> None:
        self._client = client
        self.spec = spec
        self._key = key
        self._sent = False

    def send(self) -> Job:
        """Submit, or learn which job was submitted."""
        self._sent = True
        return self._client.jobs.submit(self.spec, idempotency_key=self._key)

    def job_id(self) -> str | None:
        """Give the id of the job if there may be one; an answer that an interrupt lost is asked for again."""
        return self.send().id if self._sent else None


@contextmanager
def cancelled_on_interrupt(client: Client, job_id: Callable[[], str | None], *, keep: bool) -> Iterator[None]:
    """Cancel the remote job when this process is interrupted, unless it is to be kept; the exit code is 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not keep:
            _cancel(client, job_id)
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupt


def _cancel(client: Client, job_id: Callable[[], str | None]) -> None:
    known: str | None = None
    try:
        known = job_id()
        if known is not None:
            job = client.jobs.cancel(known)
            tell(f"interrupted; job {known} is {job.status}")
    except ConflictError as error:
        tell(f"interrupted; job {known} was not cancelled: {error}")
    except OnnxpressError as error:
        tell(f"interrupted; the job could not be cancelled: {error}", "red")
        if known is not None:
            tell(f"cancel it by hand: onnxpress cancel {known}")
