"""Environments beside our own, for runtimes that share its import folder; each is kept until what it needs changes.

`python -m tests.environments openvino` makes one before the tests (half a minute or more, 0.7 GB), so that none of them waits for it.
"""

import fcntl
import hashlib
import json
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def has_openvino() -> bool:
    """Say whether there is a wheel of onnxruntime-openvino for this machine."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def python_of(extra: str) -> Path:
    """Give the Python of an environment below var/ with one of the project's extras, which is made where it is missing."""
    folder = _ROOT / "var" / "environments" / extra
    folder.mkdir(parents=True, exist_ok=True)
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    needed = [sys.version, project["dependencies"], project["optional-dependencies"][extra]]
    wanted = hashlib.sha256(json.dumps(needed).encode()).hexdigest()
    with (folder.parent / f"{extra}.lock").open("w") as lock:
        # Another run of the tests may be making it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            sys.stderr.write(f"making an environment for the tests, with the extra {extra} ...\n")
            install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", f"{_ROOT}[{extra}]"]
            for command in ([sys.executable, "-m", "venv", "--clear", folder], install):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr[-2000:]
            stamp.write_text(wanted)
    return python


if __name__ == "__main__" and (sys.argv[1] != "openvino" or has_openvino()):
    python_of(sys.argv[1])
