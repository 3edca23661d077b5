"""`onnxpress mcp`: the service for agents."""

import typer

from onnxpress.errors import UsageError
from onnxpress.exit_codes import ExitCode
from onnxpress.mcp_server import serve
from onnxpress.terminal import tell


def mcp() -> None:
    """Serve the Model Context Protocol on standard input and output, for agents; an agent's host starts it.

    Address and key come from ONNXPRESS_URL and ONNXPRESS_API_KEY, as for every command.
    """
    try:
        serve()
    except UsageError as error:
        tell(f"onnxpress: {error}", "red")
        raise typer.Exit(ExitCode.USAGE) from error
