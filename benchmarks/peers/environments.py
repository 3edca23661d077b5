"""One virtual environment per peer, made from its pinned requirements when it is first needed."""

import hashlib
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements")
ENVIRONMENTS = Path(__file__).resolve().parents[2] / "var" / "peers"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


class PeerMissingError(Exception):
    """A peer cannot be installed here; the message is the first line that says why."""


def interpreter(name: str) -> Path:
    """Give the Python of a peer's environment, made or brought up to date where its requirements changed."""
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {name} ...", file=sys.stderr, flush=True)
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
        stamp.write_text(wanted)
    return python


def version(name: str) -> str:
    """Give the pinned version of a peer's own package; `x-with-y` is x in an environment that has y too."""
    own = name.partition("-with-")[0]
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        package, _, pinned = line.partition("==")
        if package == own:
            return pinned
    raise PeerMissingError(f"{name}.txt does not pin {own}")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PeerMissingError(errors[0] if errors else f"{command[-1]} ended with code {done.returncode}")
