"""Progress for people on stderr: moving bars on a terminal, one line per change elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from onnxpress import formatting, wording
from onnxpress.documents import Job
from onnxpress.file_transfer import Progress as Bytes
from onnxpress.terminal_text import safe_text


class LiveProgress:
    """Shows transfers and a job's steps; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeElapsedColumn(),
            )
            # Redirected, stdout would go to this console: right on one terminal, wrong when ids go into a pipe.
            self._bars = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
        self._job_bar: TaskID | None = None
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print one line for people, above the bars if there are any."""
        self._console.print(safe_text(text))

    @contextmanager
    def transfer(self, what: str) -> Iterator[Bytes]:
        """Show bytes on their way; gives the function to call as they pass."""
        started = time.monotonic()
        size = 0
        bar = self._bars.add_task(safe_text(what).plain, note="", total=None) if self._bars else None

        def show(done: int, total: int | None) -> None:
            nonlocal size
            size = done
            if self._bars and bar is not None:
                self._bars.update(bar, completed=done, total=total, note=wording.size(done))

        yield show
        if self._bars and bar is not None:
            self._bars.remove_task(bar)
        self.say(f"{what}: {wording.size(size)} in {formatting.duration(time.monotonic() - started)}")

    def warn(self, text: str) -> None:
        """Print a warning, once."""
        self._say_once(f"warning: {text}")

    def note(self, text: str) -> None:
        """Say what is done at the moment beside the job's bar; without bars it is not said at all."""
        if self._bars and self._job_bar is not None:
            self._bars.update(self._job_bar, note=safe_text(text).plain)

    def update(self, job: Job) -> None:
        """Show a job's state."""
        for warning in job.warnings:
            self.warn(warning)
        for step in job.steps:
            if step.status in {"applied", "measured", "refused", "failed"}:
                reason = f": {step.reason}" if step.reason else ""
                self._say_once(f"step {step.index + 1}/{len(job.steps)} {step.type} {step.status}{reason}")
        now = _now(job)
        if self._bars is None:
            # A search's candidates have lines of their own.
            said = job.status if job.kind == "search" and job.status == "running" and not job.paused_at else now
            # When a queued job may begin is another guess at each look: a line is for another place.
            self._say_once(said, key=f"place {job.queue.ahead}" if job.queue else said)
        else:
            self._show_bar(self._bars, job, now)

    def _show_bar(self, bars: Progress, job: Job, now: str) -> None:
        if self._job_bar is None:
            self._job_bar = bars.add_task(job.id, note="", total=None)
        fraction = job.progress.fraction if job.progress else None
        finished = 1.0 if job.finished else fraction
        bars.update(
            self._job_bar, completed=finished or 0.0, total=None if finished is None else 1.0, note=safe_text(now).plain
        )

    def _say_once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._said:
            self._said.add(key or text)
            self.say(text)


def _now(job: Job) -> str:
    """Say in a few words what the job does; the fraction is left to the bar."""
    progress = job.progress
    if job.paused_at and not job.finished:
        return "paused; `onnxpress resume` lets it go on"
    if job.finished or progress is None or job.status != "running":
        return wording.status(job.document)
    if progress.step is not None and progress.step < len(job.steps):
        step = f"step {progress.step + 1}/{len(job.steps)} {job.steps[progress.step].type}"
        return f"{step}: {progress.message}" if progress.message else step
    return progress.message or job.status
