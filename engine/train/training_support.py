"""Whether networks can be trained here, answered without loading PyTorch."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

INSTALL_LINE = "pip install 'onnxpress-server[train]'"
MISSING = "PyTorch is not installed, and training a network needs it."
TRAINING_HINT = f"Install the extra `train` beside the extra of the target: {INSTALL_LINE}"


def installed() -> bool:
    """Say whether PyTorch is there; nothing is imported."""
    return find_spec("torch") is not None


def torch_version() -> str | None:
    """Give the version of PyTorch as its package states it, None where there is none; nothing is imported."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
