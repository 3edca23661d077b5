"""Where the script lies that draws figures, in Plotly's Python package."""

from importlib.util import find_spec
from pathlib import Path

NAME = "plotly.min.js"


def plotly_script() -> Path:
    """Give its file; found, not imported, for the package takes a second to import and only its script is needed."""
    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "package_data" / NAME
