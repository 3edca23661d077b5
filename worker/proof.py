"""What this worker can run: a child runs a small network on every provider, before the first unit is taken."""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine
import sandbox

_log = logging.getLogger(__name__)
_RUNTIME_S = 60.0
_MEMORY = 4 << 30
# The service's own words for what every worker can do, and for what this one was started for.
ALL = "all"
OWN = "own"


@dataclass(frozen=True)
class Proof:
    """Providers that ran the network, those that did not with the reason, and how strongly the child was confined."""

    targets: tuple[dict[str, Any], ...] = ()
    unavailable: tuple[dict[str, Any], ...] = ()
    isolation: str = "unknown"
    cores: int = 0

    def taking(self, asked: str) -> "Proof":
        """Leave out the proven providers that this worker is not to take jobs for.

        `all` takes every one, a list by comma those that it names. `own` takes what the environment is for: its
        accelerators, and `cpu` only where there is nothing else. A job for `cpu` had better not hold up a GPU, nor be
        measured on whichever version of the runtime an accelerator needs.
        """
        proven = [target["provider"] for target in self.targets]
        if asked == ALL:
            taken = set(proven)
        elif asked == OWN:
            taken = {name for name in proven if name != "cpu"} or set(proven)
        else:
            taken = set(asked.split(","))
        return Proof(
            tuple(target for target in self.targets if target["provider"] in taken),
            self.unavailable,
            self.isolation,
            self.cores,
        )


def prove(workspaces: Path, providers: Sequence[str] | None = None) -> Proof:
    """Try every provider, or the given ones; with none of them it is only told how a child is confined here.

    This process must never load a runtime: a child does, or one for each provider where they end it.
    """
    names = engine.PROVIDER_NAMES if providers is None else providers
    isolation, outcome = _ask(workspaces, names)
    found = _found(outcome)
    if found is None and outcome.kind == "refused":
        reason = str((outcome.problem or {}).get("message"))
        found = [_missing(name, reason, listed=False) for name in names]
    if found is None:
        _log.warning("targets: the child %s (%s), now one by one\n%s", outcome.kind, outcome.exit_code, outcome.log)
        found = [one for name in names for one in _alone(workspaces, name)]
    return Proof(
        tuple(_described(one) for one in found if one["available"]),
        tuple({name: one[name] for name in ("provider", "listed", "reason")} for one in found if not one["available"]),
        isolation,
        _cores(),
    )


def _alone(workspaces: Path, name: str) -> list[dict[str, Any]]:
    _, outcome = _ask(workspaces, (name,))
    ends = {
        "crashed": f"The runtime ends the process that tries it (exit code {outcome.exit_code}).",
        "runtime_limit": f"It gives no answer within {_RUNTIME_S:g} s.",
        "memory_limit": f"It takes more than {_MEMORY >> 30} GiB of memory for a small network.",
    }
    said = (outcome.problem or {}).get("message", "It cannot be tried.")
    return _found(outcome) or [_missing(name, ends.get(outcome.kind, str(said)), listed=True)]


def _ask(workspaces: Path, names: Sequence[str]) -> tuple[str, sandbox.Outcome]:
    with tempfile.TemporaryDirectory(dir=workspaces, prefix=".targets-") as folder:
        (Path(folder) / "tmp").mkdir()
        limits = sandbox.Limits(runtime_s=_RUNTIME_S, memory_bytes=_MEMORY, threads=4)
        child = sandbox.start(sandbox.Order("targets", Path(folder), {"providers": list(names)}), limits=limits)
        outcome = child.wait()
    assert outcome is not None
    return next((str(told.get("level")) for told in child.events() if told["type"] == "confined"), "none"), outcome


def _found(outcome: sandbox.Outcome) -> list[dict[str, Any]] | None:
    return list(outcome.value["targets"]) if outcome.kind == "done" and outcome.value is not None else None


def _missing(name: str, reason: str, *, listed: bool) -> dict[str, Any]:
    return {"provider": name, "available": False, "listed": listed, "reason": reason}


def _described(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in {"available", "listed", "reason"}}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
