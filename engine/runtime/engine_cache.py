"""Where providers that compile a network keep what they made of it, so that a second session does not compile it again.

It is a folder of the job: what lies in it is run as it is found, so no other job may have put it there.
"""

import re
import tempfile
from functools import cache
from pathlib import Path

_chosen: list[Path] = []


def keep_engines_in(folder: Path) -> None:
    """Have compiled networks kept in a folder from now on; without this they go when the process ends."""
    _chosen[:] = [folder]


def engine_folder(*key: str) -> Path:
    """Give the folder for one kind of machine, which the words of the key name: an engine runs on no other."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(key)).strip("-") or "any"
    folder = (_chosen[0] if _chosen else Path(_of_this_process().name)) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _of_this_process() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="engines-")
