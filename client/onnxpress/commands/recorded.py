"""A run whose end is told whatever it is: reports are written, and the CI system hears of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from onnxpress.commands.options import writable
from onnxpress.errors import OnnxpressError, UsageError
from onnxpress.exit_codes import ExitCode
from onnxpress.pipeline import Pipeline
from onnxpress.report_formats import FORMS_HELP, Form, form_of
from onnxpress.run_record import RunRecord
from onnxpress.run_reports import tell_pipeline, write_reports
from onnxpress.terminal import tell

Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help=f"Repeatable, where reports go: {FORMS_HELP}. Written whatever the end is, with the reason.",
    ),
]
OnInconclusive = Annotated[
    str,
    typer.Option(
        "--on-inconclusive", metavar="inconclusive|fail|pass", help="What an undecided gate means for the exit code."
    ),
]
ServiceOutage = Annotated[
    str,
    typer.Option(
        "--service-outage", metavar="fail|skip", help="Whether a service that is away fails the pipeline or is skipped."
    ),
]
_INCONCLUSIVE = {"inconclusive": ExitCode.INCONCLUSIVE, "fail": ExitCode.GATE_FAILED, "pass": ExitCode.OK}


def code_of_inconclusive(choice: str) -> ExitCode:
    """Give the exit code of a verdict that is undecided; raises UsageError."""
    if choice not in _INCONCLUSIVE:
        raise UsageError(f"--on-inconclusive {choice} is not known; it is one of {', '.join(_INCONCLUSIVE)}")
    return _INCONCLUSIVE[choice]


def skips_outage(choice: str) -> bool:
    """Say whether a service that is away is no failure; raises UsageError."""
    if choice not in {"fail", "skip"}:
        raise UsageError(f"--service-outage {choice} is not known; it is fail or skip")
    return choice == "skip"


def forms_wanted(paths: Sequence[Path], pipeline: Pipeline) -> set[Form]:
    """Give the forms that a run's files take, and Markdown where the CI system shows a summary."""
    return {form_of(path) for path in paths} | ({"md"} if pipeline.summary_file is not None else set())


@contextmanager
def recorded(
    record: RunRecord, paths: Sequence[Path], pipeline: Pipeline, *, service_outage: str = "fail"
) -> Iterator[None]:
    """Write the run's reports and tell the CI system when the block ends, however it ends.

    With `skip` a service that is away ends it with 0, and the reports say that nothing was checked. A block that comes to its
    end without an exit code has no result to tell of.
    """
    skip_outage = skips_outage(service_outage)
    for path in paths:
        writable(path, "--report")
    try:
        yield
    except typer.Exit as end:
        if end.exit_code == ExitCode.INTERRUPTED:
            record.interrupted()
        _told(record, paths, pipeline, quiet=end.exit_code == ExitCode.INTERRUPTED)
        raise
    except KeyboardInterrupt:
        record.interrupted()
        _told(record, paths, pipeline, quiet=True)
        raise
    except OnnxpressError as error:
        record.failed(error, skip_outage=skip_outage)
        _told(record, paths, pipeline, quiet=True)
        if record.skipped:
            tell(f"onnxpress: {error}", "yellow")
            tell("skipped: the service is away, and --service-outage skip says not to fail for that", "yellow")
            raise typer.Exit(ExitCode.OK) from error
        raise
    except Exception as error:
        record.reason = f"{type(error).__name__}: {error}"
        _told(record, paths, pipeline, quiet=True)
        raise


def _told(record: RunRecord, paths: Sequence[Path], pipeline: Pipeline, *, quiet: bool) -> None:
    """Write what is to be written; with `quiet` a file that cannot be is told of, and does not hide why the run ended."""
    try:
        write_reports(record, paths)
    except UsageError as error:
        if not quiet:
            raise
        tell(f"onnxpress: {error}", "red")
    for line in tell_pipeline(record, pipeline):
        typer.echo(line, err=True)
