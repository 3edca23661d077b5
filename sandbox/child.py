"""The child: locks itself down, then enters the engine's front door. Started as `python -I -m sandbox.child`, or forked.

It reads JSON lines from the control descriptor, and dies when that is closed: first its limits and its folder, and when its
parent has seen that it is locked down, its order. It writes JSON lines to its events descriptor, the last one the result. What
libraries print goes to the log and means nothing.
"""

import errno
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import engine
from sandbox import confine, self_test
from sandbox.host import Host
from sandbox.keeper import Keeper, Requests

Tell = Callable[[dict[str, Any]], None]
_PROGRESS_S = 0.05


def main(argv: list[str]) -> NoReturn:
    """Do one order."""
    control, events, parent = (int(word) for word in argv)
    # Nothing that this process starts inherits them.
    os.set_inheritable(control, False)
    os.set_inheritable(events, False)
    keep(control, events, parent)


def keep(control: int, events: int, parent: int) -> NoReturn:
    """Do one order: this process becomes the keeper, the one below it works."""
    # Its parent is sure to be its own when it has said something, also where it was forked elsewhere.
    setup = json.loads(_line(control))
    confine.die_with_parent(parent)
    confine.limit(**setup["limits"])
    if not setup["devices"]:
        confine.separate()
    requests, to_keeper = os.pipe()
    from_keeper, answers = os.pipe()
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        os.close(requests)
        os.close(answers)
        confine.die_with_parent(keeper)
        engine.start_probes_with(Requests(to_keeper, from_keeper).ask)
        _work_as_ordered(setup, control, events)
    for descriptor in (control, events, to_keeper, from_keeper):
        os.close(descriptor)
    workspace, devices = Path(setup["workspace"]), tuple(setup["devices"])

    def probe(request: dict[str, Any]) -> dict[str, Any]:
        confine.lock_down(workspace, devices)
        return engine.answer_probe(request)

    Keeper(worker, requests, answers, probe).keep()


def _work_as_ordered(setup: dict[str, Any], control: int, events: int) -> NoReturn:
    """Lock this process down, show it, and only then be told what to do."""
    workspace = Path(setup["workspace"])
    confine.lock_down(workspace, setup["devices"])
    with os.fdopen(events, "wb", buffering=0) as out:
        told_at, one = 0.0, threading.Lock()

        def tell(event: dict[str, Any]) -> None:
            nonlocal told_at
            if event.get("type") == "progress":
                # Nobody reads each of thousands of steps, and a child that says too much is ended.
                if time.monotonic() - told_at < _PROGRESS_S and event.get("fraction") != 1:
                    return
                told_at = time.monotonic()
            line = json.dumps(event, allow_nan=False).encode() + b"\n"
            with one:
                out.write(line)

        tell({"type": "locked_down", "tried": self_test.tried(Path(setup["canary"]), os.getppid())})
        order = json.loads(_line(control))
        host = Host(tell)
        threading.Thread(target=host.listen, args=(control,), daemon=True).start()
        order["host"] = host if order["takes_turns"] else None
        tell({"type": "result", **_result(order, workspace, tell)})
        # Libraries' threads may hang or crash on the way out, and there is nothing left to say.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _result(order: dict[str, Any], workspace: Path, tell: Tell) -> dict[str, Any]:
    try:
        return {"ok": True, "value": _work(order, workspace, tell)}
    except engine.EngineError as error:
        return {"ok": False, "problem": error.problem()}
    except MemoryError:
        traceback.print_exc()
        return _failed("memory_limit", "user", "The network needs more memory than the job's limit.")
    except OSError as error:
        traceback.print_exc()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return _failed("disk_full", "transient", "The worker's disk is full.", retryable=True)
        return _failed("engine_failed", "service", "The engine failed unexpectedly.")
    except Exception:  # noqa: BLE001 - the process's outermost edge: the trace is logged, the text stays inside
        traceback.print_exc()
        return _failed("engine_failed", "service", "The engine failed unexpectedly.")


def _work(order: dict[str, Any], workspace: Path, tell: Tell) -> dict[str, Any]:
    """Do the order beside no measurement of another child: a job sees to that itself, and merging reports is no work."""
    host = order["host"]
    # What is loaded for it stays. The collector would go through all of it again and again, while it is loaded too.
    gc.disable()
    getattr(engine, _LOADED.get(order["verb"], order["verb"]))
    gc.freeze()
    gc.enable()
    if order["verb"] in _JOBS:
        deadline = time.monotonic() + order["runtime_s"]
        return _JOBS[order["verb"]](workspace, order["payload"], tell, host, deadline)
    if order["verb"] == "merge":
        return _merge(workspace, order["payload"], tell)
    with engine.HostLock(host).working():
        return _VERBS[order["verb"]](workspace, order["payload"], tell)


def _failed(code: str, blame: str, message: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"ok": False, "problem": {"code": code, "class": blame, "retryable": retryable, "message": message}}


def _inspect_model(workspace: Path, _payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    return engine.inspect_model(workspace / "model" / "model.onnx").model_dump(mode="json")


def _inspect_archive(workspace: Path, payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    archive, out = workspace / "model" / "archive.zip", workspace / "out"
    return engine.inspect_archive(archive, out, limit=payload["limit"]).model_dump(mode="json")


def _inspect_dataset(workspace: Path, payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    data = workspace / "data" / payload["file"]
    declared = json.loads((workspace / "data" / "dataset.json").read_bytes())
    return engine.inspect_dataset(data, metric=declared.get("metric")).model_dump(mode="json")


def _prunability(workspace: Path, _payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    return engine.prunability(workspace / "model" / "model.onnx").model_dump(mode="json")


def _run(workspace: Path, payload: dict[str, Any], tell: Tell, lock: Host | None, deadline: float) -> dict[str, Any]:
    report = engine.run(
        engine.read_spec(payload["spec"]),
        workspace,
        tell,
        lock_file=lock,
        crashed_steps=frozenset(payload["crashed_steps"]),
        only=frozenset(payload["targets"]) or None,
        deadline=deadline,
        names=payload.get("names"),
    )
    return {"report": report.model_dump(mode="json"), "inspection": _made(workspace, lock)}


def _made(workspace: Path, lock: Host | None) -> dict[str, Any] | None:
    """Say what the network is that was made, None where none was."""
    network = workspace / "out" / "model.onnx"
    if not network.exists():
        return None
    with engine.HostLock(lock).working():
        return engine.inspect_model(network).model_dump(mode="json")


def _search(workspace: Path, payload: dict[str, Any], tell: Tell, lock: Host | None, deadline: float) -> dict[str, Any]:
    turn = engine.search_turn(
        engine.Search.model_validate(payload["spec"]),
        workspace,
        tell,
        told=payload["told"],
        pieces=payload["pieces"],
        elapsed_s=payload["elapsed_s"],
        workers=payload["workers"],
        lock_file=lock,
        deadline=deadline,
    )
    return {**turn, "inspection": _made(workspace, lock)} if "report" in turn else turn


def _variants(
    workspace: Path, payload: dict[str, Any], tell: Tell, lock: Host | None, deadline: float
) -> dict[str, Any]:
    spec, part = engine.Search.model_validate(payload["spec"]), payload["part"]
    return {"piece": engine.measure_variants(spec, workspace, tell, part=part, lock_file=lock, deadline=deadline)}


def _trial(workspace: Path, payload: dict[str, Any], tell: Tell, lock: Host | None, deadline: float) -> dict[str, Any]:
    spec, proposal = engine.Search.model_validate(payload["spec"]), engine.Proposal.model_validate(payload["proposal"])
    values = engine.try_candidate(spec, workspace, tell, proposal=proposal, lock_file=lock, deadline=deadline)
    return {"values": values.model_dump(mode="json"), "inspection": _made(workspace, lock)}


def _merge(workspace: Path, payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    spec = engine.Profile.model_validate(payload["spec"])
    measured = [engine.ProfileReport.model_validate(one) for one in payload["reports"]]
    failed = [
        engine.unmeasured(spec.targets, spec.gates, one["targets"], one, beside=measured[0])
        for one in payload["failures"]
    ]
    report = engine.merge_reports([*measured, *failed])
    for name, content in engine.report_files(report).items():
        (workspace / "out" / name).write_bytes(content)
    return {"report": report.model_dump(mode="json")}


def _targets(_workspace: Path, payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    return {"targets": engine.targets(payload.get("providers", engine.PROVIDER_NAMES))}


def _training(_workspace: Path, _payload: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    return engine.training()


# What an order takes of the engine, where that has another name.
_LOADED = {
    "merge": "merge_reports",
    "search": "search_turn",
    "variants": "measure_variants",
    "trial": "try_candidate",
}
# They see to it themselves that nobody measures while they work.
_JOBS: dict[str, Callable[[Path, dict[str, Any], Tell, Host | None, float], dict[str, Any]]] = {
    "run": _run,
    "search": _search,
    "variants": _variants,
    "trial": _trial,
}
_VERBS: dict[str, Callable[[Path, dict[str, Any], Tell], dict[str, Any]]] = {
    "inspect_model": _inspect_model,
    "inspect_archive": _inspect_archive,
    "inspect_dataset": _inspect_dataset,
    "prunability": _prunability,
    "targets": _targets,
    "training": _training,
}


def _line(descriptor: int) -> bytes:
    parts = b""
    while not parts.endswith(b"\n"):
        part = os.read(descriptor, 1 << 16)
        if not part:
            os._exit(1)
        parts += part
    return parts


if __name__ == "__main__":
    main(sys.argv[1:])
