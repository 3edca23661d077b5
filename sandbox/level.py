"""How strongly a child is confined: what its parent has seen for itself before the child was given anything foreign.

`strict`: it opens only its job's files and the system's libraries, has no network, starts no programs and reaches no other
process. `partial`: some of that, or with devices, whose drivers are a way into the kernel. `rlimits`: limits alone.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["rlimits", "partial", "strict"]
LEVELS: tuple[Level, ...] = ("rlimits", "partial", "strict")
_FILTERED = "2"
_REFUSED = "refused"
# What a child tries when it is locked down, and what it means when that goes.
_TRIED = {
    "files": "it can open files outside of its folder (needs Landlock: Linux 5.13, and not switched off at boot)",
    "network": "it can open sockets (needs seccomp filters)",
    "processes": "it can start processes (needs seccomp filters)",
    "signals": "it can signal other processes (needs seccomp filters)",
}


@dataclass(frozen=True)
class Confinement:
    """The level, and why it is not a higher one."""

    level: Level
    missing: tuple[str, ...] = ()

    def reaches(self, demanded: Level) -> bool:
        """Tell whether it is at least so strong."""
        return LEVELS.index(self.level) >= LEVELS.index(demanded)


NONE_SEEN = Confinement("rlimits", ("nothing was seen of how it is confined",))


@contextmanager
def canary(folder: Path) -> Iterator[Path]:
    """Give a file beside a workspace, as other jobs' files are, that a child must not be able to open."""
    path = folder / f".canary-{secrets.token_hex(8)}"
    path.touch(mode=0o600, exist_ok=False)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def seen(worker: int, tried: Mapping[str, Any], devices: Sequence[str]) -> Confinement:
    """Look at a process that has locked itself down and knows nothing foreign yet; `tried` is what it has tried since."""
    try:
        status = _status(worker)
        opened = [str(file.readlink()) for file in Path(f"/proc/{worker}/fd").iterdir()]
    except OSError:
        return NONE_SEEN
    missing = [meaning for name, meaning in _TRIED.items() if tried.get(name) != _REFUSED]
    filtered, files = status.get("Seccomp") == _FILTERED, tried.get("files") == _REFUSED
    if not filtered:
        missing.append("the kernel filters none of its system calls (needs seccomp filters)")
    if status.get("NoNewPrivs") != "1":
        missing.append("it could gain rights by starting a program")
    if int(status.get("CapEff", "1"), 16) or int(status.get("CapPrm", "1"), 16):
        missing.append("it has kept the administrator's rights")
    foreign = [name for name in opened if not name.startswith("pipe:") and name not in {"/dev/null", f"/proc/{worker}"}]
    if foreign:
        missing.append("it has inherited open files")
    if devices:
        missing.append(f"it may use {', '.join(devices[:4])}{', ...' if len(devices) > 4 else ''}, as its target needs")
    if not missing:
        return Confinement("strict")
    return Confinement("partial" if filtered or files else "rlimits", tuple(missing))


def only_child(keeper: int) -> int | None:
    """Give the one process below another; None where there is none, or more."""
    try:
        found = Path(f"/proc/{keeper}/task/{keeper}/children").read_bytes().split()
    except OSError:
        return None
    return int(found[0]) if len(found) == 1 else None


def _status(pid: int) -> dict[str, str]:
    # Its name, which it chooses itself, comes first and is escaped.
    lines = Path(f"/proc/{pid}/status").read_bytes().decode(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
