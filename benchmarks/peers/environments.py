"""One virtual environment per peer, made from its pinned requirements when it is first needed.

Where nothing can be installed, the variable ONNXPRESS_BENCHMARK_PEERS=here lets peers run in the environment of the benchmark
itself, as far as it has their packages, whichever version that is.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import threading
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements")
ENVIRONMENTS = Path(__file__).resolve().parents[2] / "var" / "peers"
PLACE = "ONNXPRESS_BENCHMARK_PEERS"
_MAKING = threading.Lock()
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


class PeerMissingError(Exception):
    """A peer cannot be installed here; the message is the first line that says why."""


def interpreter(name: str) -> Path:
    """Give the Python of a peer's environment, made or brought up to date where its requirements changed."""
    if _here():
        _installed(name)
        return Path(sys.executable)
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    with _MAKING:
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"installing {name} ...", file=sys.stderr, flush=True)
            _call([sys.executable, "-m", "venv", str(folder)])
            _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
            stamp.write_text(wanted)
    return python


def version(name: str) -> str:
    """Give the version of a peer's own package, as it is pinned or as it is here."""
    if _here():
        try:
            return _installed(name)
        except PeerMissingError:
            return "(not installed)"
    own = _package(name)
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        package, _, pinned = line.partition("==")
        if package == own:
            return pinned
    raise PeerMissingError(f"{name}.txt does not pin {own}")


def _here() -> bool:
    return os.environ.get(PLACE) == "here"


def _package(name: str) -> str:
    """Give the peer's own package: `x-with-y` is x in an environment that has y too."""
    return name.partition("-with-")[0]


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(_package(name))
    except importlib.metadata.PackageNotFoundError:
        raise PeerMissingError(f"{_package(name)} is not installed here, and {PLACE} says not to install it") from None


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PeerMissingError(errors[0] if errors else f"{command[-1]} ended with code {done.returncode}")
