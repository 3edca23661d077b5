"""What this worker can run: children run a small network on every provider and train one, before the first unit is taken."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
UNKNOWN = sandbox.Confinement("rlimits", ("it was not seen how a process is confined here",))
_NOT_TO_TRAIN = "This worker was told not to train (ONNXPRESS_WORKER_TRAINING)."


@dataclass(frozen=True)
class Proof:
    """Providers that ran the network, those that did not with the reason, and how strongly the child was confined."""

    targets: tuple[dict[str, Any], ...] = ()
    unavailable: tuple[dict[str, Any], ...] = ()
    confinement: sandbox.Confinement = UNKNOWN
    cores: int = 0

    @property
    def isolation(self) -> sandbox.Level:
        """How strongly its children are confined at least: those that use an accelerator have its devices."""
        has_devices = any(target.get("device", "cpu") != "cpu" for target in self.targets)
        return min(self.confinement.level, "partial" if has_devices else "strict", key=sandbox.LEVELS.index)

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
        return replace(self, targets=tuple(target for target in self.targets if target["provider"] in taken))

    def with_training(self, told: Mapping[str, Any]) -> "Proof":
        """Say of every proven provider whether networks can be trained here, and with what."""
        return replace(self, targets=tuple({**target, "training": dict(told)} for target in self.targets))


def prove(
    workspaces: Path, providers: Sequence[str] | None = None, *, trains: bool = True, devices: bool = True
) -> Proof:
    """Try every provider, or the given ones; with none of them it is only told how a child is confined here.

    Without `devices` no child has an accelerator, and none is proven.

    This process must never load a runtime: a child does, or one for each provider where they end it. PyTorch is tried in a
    child of its own at the same time, unless the worker is not to train.
    """
    names = engine.PROVIDER_NAMES if providers is None else providers
    if not names:
        return _proven(workspaces, names, devices=False)
    if not trains:
        return _proven(workspaces, names, devices=devices).with_training({"available": False, "reason": _NOT_TO_TRAIN})
    with _asked(workspaces, "training", {}, devices=devices) as trainer:
        proven = _proven(workspaces, names, devices=devices)
        training = _training(trainer.wait())
    if not training["available"]:
        _log.info("takes no jobs that train: %s", training["reason"])
    return proven.with_training(training)


def _training(outcome: sandbox.Outcome | None) -> dict[str, Any]:
    assert outcome is not None
    if outcome.kind == "done" and outcome.value is not None:
        return dict(outcome.value)
    _log.warning("training: the child %s (%s)\n%s", outcome.kind, outcome.exit_code, outcome.log)
    return {"available": False, "reason": _end(outcome, "PyTorch", "to load")}


def _proven(workspaces: Path, names: Sequence[str], *, devices: bool) -> Proof:
    confinement, outcome = _ask(workspaces, names, devices=devices)
    if devices and sandbox.devices():
        # Most jobs have none of them.
        confinement, _ = _ask(workspaces, (), devices=False)
    found = _found(outcome)
    if found is None and outcome.kind == "refused":
        reason = str((outcome.problem or {}).get("message"))
        found = [_missing(name, reason, listed=False) for name in names]
    if found is None:
        _log.warning("targets: the child %s (%s), now one by one\n%s", outcome.kind, outcome.exit_code, outcome.log)
        found = [one for name in names for one in _alone(workspaces, name, devices=devices)]
    return Proof(
        tuple(_described(one) for one in found if one["available"]),
        tuple({name: one[name] for name in ("provider", "listed", "reason")} for one in found if not one["available"]),
        confinement,
        _cores(),
    )


def _alone(workspaces: Path, name: str, *, devices: bool) -> list[dict[str, Any]]:
    _, outcome = _ask(workspaces, (name,), devices=devices)
    return _found(outcome) or [_missing(name, _end(outcome, "The runtime", "for a small network"), listed=True)]


def _end(outcome: sandbox.Outcome, tried: str, what_for: str) -> str:
    """Say how a child ended that was to try something."""
    ends = {
        "crashed": f"{tried} ends the process that tries it (exit code {outcome.exit_code}).",
        "runtime_limit": f"It gives no answer within {_RUNTIME_S:g} s.",
        "memory_limit": f"It takes more than {_MEMORY >> 30} GiB of memory {what_for}.",
    }
    return ends.get(outcome.kind, str((outcome.problem or {}).get("message", "It cannot be tried.")))


def _ask(workspaces: Path, names: Sequence[str], *, devices: bool) -> tuple[sandbox.Confinement, sandbox.Outcome]:
    with _asked(workspaces, "targets", {"providers": list(names)}, devices=devices) as child:
        outcome = child.wait()
    assert outcome is not None
    return child.confinement or UNKNOWN, outcome


@contextmanager
def _asked(
    workspaces: Path, verb: sandbox.Verb, payload: Mapping[str, Any], *, devices: bool
) -> Iterator[sandbox.Child]:
    """Have a child work in a folder of its own; it has ended when the folder goes."""
    with tempfile.TemporaryDirectory(dir=workspaces, prefix=f".{verb}-") as folder:
        (Path(folder) / "tmp").mkdir()
        limits = sandbox.Limits(runtime_s=_RUNTIME_S, memory_bytes=_MEMORY, threads=4)
        child = sandbox.start(sandbox.Order(verb, Path(folder), payload, devices=devices), limits=limits)
        try:
            yield child
        finally:
            child.kill()


def _found(outcome: sandbox.Outcome) -> list[dict[str, Any]] | None:
    return list(outcome.value["targets"]) if outcome.kind == "done" and outcome.value is not None else None


def _missing(name: str, reason: str, *, listed: bool) -> dict[str, Any]:
    return {"provider": name, "available": False, "listed": listed, "reason": reason}


def _described(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in {"available", "listed", "reason"}}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
