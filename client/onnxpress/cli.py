"""`onnxpress`, the command line: one function per command, in `onnxpress.commands`."""

from typing import Annotated

import typer

from onnxpress import __version__
from onnxpress.commands.agent import mcp
from onnxpress.commands.alias import alias
from onnxpress.commands.audit import audit
from onnxpress.commands.compress import compress
from onnxpress.commands.dataset import dataset
from onnxpress.commands.export import card, export
from onnxpress.commands.jobs import cancel, download, jobs, logs, report, retry, wait
from onnxpress.commands.keys import keys
from onnxpress.commands.library import data, models, prunability, push
from onnxpress.commands.link import link
from onnxpress.commands.pipelines import comment, init_ci
from onnxpress.commands.profile import profile
from onnxpress.commands.search import front, pause, pick, resume, trials
from onnxpress.commands.service import passes, recipes, targets
from onnxpress.commands.tenants import tenants
from onnxpress.commands.webhooks import webhooks
from onnxpress.terminal import give, interrupt_on_sigterm

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode=None)
for verb in (
    compress,
    front,
    pick,
    trials,
    pause,
    resume,
    profile,
    push,
    data,
    models,
    prunability,
    jobs,
    wait,
    cancel,
    retry,
    report,
    logs,
    download,
    card,
    export,
    link,
    passes,
    recipes,
    targets,
    audit,
    comment,
    mcp,
):
    app.command()(verb)
app.add_typer(dataset, name="dataset")
app.command("init-ci")(init_ci)
app.add_typer(alias, name="alias")
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")
app.add_typer(webhooks, name="webhooks")


def _version(asked: bool) -> None:
    if asked:
        give(__version__)
        raise typer.Exit


@app.callback()
def onnxpress(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Compress ONNX networks on your own service: say what you need, get what is smaller or faster, measured beside the original.

        onnxpress compress model.onnx --data data.npz --goal latency --max-drop 1% --max-size 2MB --out small.onnx

    ONNXPRESS_URL says where the service is, ONNXPRESS_API_KEY opens it; both are found by themselves for a service that
    runs in this folder.
    """
    del version


def main() -> None:
    """Run the command line."""
    interrupt_on_sigterm()
    app()
