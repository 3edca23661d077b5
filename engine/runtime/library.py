"""The onnxruntime package itself: imported on first use, with telemetry off.

onnxruntime 1.29 and later report telemetry unless told otherwise before the import, so this module says so and imports it
only when it is first asked for.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from engine.errors import TargetUnavailableError
from engine.runtime.native_output import held_back

# Of onnxruntime's levels: warnings are about devices and graphs, and nobody can do anything about them.
_ERRORS = 3


@cache
def onnxruntime_module() -> Any:
    """Give the package, imported with telemetry off."""
    check_single_onnxruntime()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # again: someone may have cleaned the environment since
    # It looks for devices while it is imported, and warns of those that are not there.
    with held_back():
        import onnxruntime  # noqa: PLC0415  # whoever only imports this module must not load it

        module: Any = onnxruntime
        module.set_default_logger_severity(_ERRORS)
        if getattr(module, "cuda_version", ""):
            # The CUDA libraries that pip installs lie where the system's loader does not look. What is missing is told when
            # the provider is proven.
            module.preload_dlls()
    return module


def check_single_onnxruntime(folders: Iterable[Path] | None = None) -> str:
    """Give the name of the one installed onnxruntime distribution.

    Its wheels (cpu, gpu, openvino, ...) share one import folder: two of them overwrite each other's files.

    Raises:
        TargetUnavailableError: none is installed, or more than one owns the folder.
    """
    owners = _owners_here() if folders is None else _owners(folders)
    if not owners:
        raise TargetUnavailableError(
            "onnxruntime is not installed", hint="Install exactly one of the extras cpu, gpu and openvino."
        )
    if len(owners) > 1:
        raise TargetUnavailableError(
            f"{' and '.join(owners)} share one import folder and have overwritten each other",
            hint="Make a new environment with exactly one of the extras cpu, gpu and openvino.",
        )
    return owners[0]


def runtime_version() -> str:
    """Give onnxruntime's version."""
    version: str = onnxruntime_module().__version__
    return version


@cache
def native_errors() -> tuple[type[Exception], ...]:
    """Give onnxruntime's own exceptions; they have no common base."""
    native = onnxruntime_module().capi.onnxruntime_pybind11_state
    return tuple(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception))


@cache
def load_errors() -> tuple[type[Exception], ...]:
    """All that making a session may raise: the binding and its Python wrapper add plain ones."""
    return (*native_errors(), RuntimeError, ValueError, MemoryError)


@cache
def run_errors() -> tuple[type[Exception], ...]:
    """All that running a session may raise."""
    return (*load_errors(), TypeError)


@cache
def _owners_here() -> list[str]:
    """Once per process: what was installed when onnxruntime was loaded is what is used."""
    return _owners(map(Path, sys.path))


def _owners(folders: Iterable[Path]) -> list[str]:
    return sorted({owner.name for owner in _candidates(folders) if _owns_onnxruntime(owner)})


def _candidates(folders: Iterable[Path]) -> Iterator[Distribution]:
    """Give what may own it by its folder's name: to read what every distribution says of itself takes as long as to load it."""
    for folder in folders:
        # Zips and folders that are not there may be in the path.
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if path.suffix == ".dist-info" and path.name.lower().startswith(("onnxruntime", "ort_", "ort-")):
                    yield Distribution.at(path)


def _owns_onnxruntime(distribution: Distribution) -> bool:
    if not (distribution.name or "").lower().replace("_", "-").startswith(("onnxruntime", "ort-")):
        return False
    return any(file.as_posix() == "onnxruntime/__init__.py" for file in distribution.files or ())
