"""A remote job that is taken back when its asker is interrupted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import typer

from onnxpress.client import Client
from onnxpress.errors import ConflictError, OnnxpressError
from onnxpress.exit_codes import ExitCode
from onnxpress.terminal import tell, wait_again


@contextmanager
def cancelled_on_interrupt(client: Client, job_id: Callable[[], str | None], *, keep: bool) -> Iterator[None]:
    """Cancel the remote job when this process is interrupted, unless it is to be kept; the exit code is 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if keep:
            _leave(job_id)
        else:
            _cancel(client, job_id)
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupt


def _leave(job_id: Callable[[], str | None]) -> None:
    # An answer that the interrupt lost is asked for again.
    with suppress(OnnxpressError):
        known = job_id()
        if known is not None:
            tell(f"interrupted; the job goes on; wait for it again: {wait_again(known)}")


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
