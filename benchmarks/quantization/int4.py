"""Error of one layer's output with int4 weights in groups of 32, on correlated inputs that no tool has seen."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import documents
from benchmarks.cases import UNLABELLED
from benchmarks.contest import HERE, ONE_THREAD, SCRATCH
from benchmarks.peers import environments
from benchmarks.process import Spent, spend
from benchmarks.scores import Array
from engine import EngineError
from engine.measure.providers import session

GROUP = 32
_JUDGED = 128
_RTN = "onnxruntime RTN"
_PEERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    _RTN: ("onnxruntime", {"method": "rtn", "group": GROUP}),
    "onnxruntime GPTQ": ("onnxruntime-with-torch", {"method": "gptq", "group": GROUP}),
    "onnxsim RTN": ("onnxsim", {"method": "rtn"}),
    "onnxsim GPTQ": ("onnxsim", {"method": "gptq"}),
    "nncf RTN": ("nncf", {"group": GROUP}),
    "nncf scale estimation": ("nncf", {"group": GROUP, "scale_estimation": True}),
    "nncf AWQ + scale estimation": ("nncf", {"group": GROUP, "scale_estimation": True, "awq": True}),
    "nncf GPTQ": ("nncf", {"group": GROUP, "gptq": True}),
}
_OURS: Mapping[str, Mapping[str, Any]] = {
    "onnxpress RTN": {"method": "rtn"},
    "onnxpress GPTQ": {"method": "gptq"},
    "onnxpress GPTQ, activation order": {"method": "gptq", "activation_order": True},
}


def measure(*, quick: bool) -> tuple[dict[str, Any], str]:
    """Quantize by everybody and compare the squared error of the output on held-out rows."""
    width, rows = (256, 1024) if quick else (1024, 8192)
    folder = SCRATCH / "quantization" / "int4"
    folder.mkdir(parents=True, exist_ok=True)
    calibration, held_out = _inputs(width, rows)
    model = _network(width, folder / "original.onnx")
    np.savez(folder / "calibration.npz", allow_pickle=False, x=calibration)
    _write_dataset(model, calibration, folder / "dataset.npz")
    wanted = session(model, ONE_THREAD).run({"x": held_out})["y"]
    outcomes: dict[str, dict[str, Any]] = {}
    for name, (peer, settings) in _PEERS.items():
        outcomes[name] = _judged(_by_peer(name, peer, settings, model), folder / name, held_out, wanted)
    for name, settings in _OURS.items():
        outcomes[name] = _judged(_by_us(name, settings, model), folder / name, held_out, wanted)
    return {"case": "int4", "width": width, "rows": rows, "entries": outcomes}, _markdown(outcomes, width, rows)


def _inputs(width: int, rows: int) -> tuple[Array, Array]:
    """Rows whose covariance has eigenvalues that fall like i^-1.5, a power law as activations of trained layers have."""
    random = np.random.default_rng(0)
    spread = np.arange(1, width + 1) ** -0.75
    mixing = np.linalg.qr(random.standard_normal((width, width)))[0] * spread[:, None]
    drawn = random.standard_normal((2 * rows, width)) @ mixing
    drawn = (drawn / drawn.std()).astype(np.float32)
    return drawn[:rows], drawn[rows:]


def _network(width: int, path: Path) -> Path:
    weights = np.random.default_rng(1).standard_normal((width, width)).astype(np.float32) / width**0.5
    node = helper.make_node("MatMul", ["x", "weights"], ["y"], name="layer")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in ("x", "y")]
    graph = helper.make_graph([node], "layer", ports[:1], ports[1:], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def _write_dataset(model: Path, calibration: Array, path: Path) -> None:
    """A dataset for the engine: the rows that calibrate, and a few of them again with labels, which do not.

    Labels are what tells the two apart; here they are the largest output.
    """
    judged = calibration[:_JUDGED]
    label = session(model, ONE_THREAD).run({"x": judged})["y"].argmax(axis=1).astype(np.int64)
    marks = np.concatenate([np.full(len(calibration), UNLABELLED, np.int64), label])
    np.savez(path, allow_pickle=False, x=np.concatenate([calibration, judged]), label=marks)


def _by_peer(name: str, peer: str, settings: Mapping[str, Any], model: Path) -> Spent:
    place = model.parent / name
    request = {
        "model": str(model),
        "out": str(place / "model.onnx"),
        "calibration": str(model.with_name("calibration.npz")),
        "settings": dict(settings),
    }
    try:
        python = environments.interpreter(peer)
    except environments.PeerMissingError as error:
        return Spent(problem=f"cannot be installed: {error}")
    script = HERE / "peers" / f"{peer.partition('-with-')[0]}_weights.py"
    return spend(python, script, request, place)


def _by_us(name: str, settings: Mapping[str, Any], model: Path) -> Spent:
    place = model.parent / name
    step = {"type": "quantize_weights", "bits": 4, "group": GROUP, "accuracy": "float32", **settings}
    # Size is what is asked for, and no loss is too large: the error is what this benchmark measures.
    gates = [
        {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0},
        {"metric": "top1", "rule": "max_drop", "value": 1.0},
    ]
    request = {
        "model": str(model),
        "out": str(place / "model.onnx"),
        "data": str(model.with_name("dataset.npz")),
        "spec": {"recipe": {"passes": [step]}, "gates": gates},
    }
    return spend(Path(sys.executable), HERE / "engine_job.py", request, place)


def _judged(spent: Spent, place: Path, held_out: Array, wanted: Array) -> dict[str, Any]:
    outcome: dict[str, Any] = {"seconds": spent.seconds, "problem": spent.problem, "error": None}
    if spent.value.get("unchanged"):
        outcome["problem"] = "; ".join(str(step["reason"]) for step in spent.value["steps"])
    if outcome["problem"] is None:
        try:
            got = session(place / "model.onnx", ONE_THREAD).run({"x": held_out})["y"]
        except EngineError as error:
            return {**outcome, "problem": f"does not run: {error.message.splitlines()[0]}"}
        outcome["error"] = float(np.square(got - wanted).sum() / np.square(wanted).sum())
    return outcome


def _markdown(outcomes: Mapping[str, dict[str, Any]], width: int, rows: int) -> str:
    plain = outcomes[_RTN]["error"]
    made = [
        [name, "", "", outcome["problem"]]
        if outcome["error"] is None
        else [
            name,
            f"{outcome['error']:.2e}",
            f"{outcome['error'] / plain:.2f}" if plain else "",
            documents.seconds(outcome["seconds"]),
        ]
        for name, outcome in outcomes.items()
    ]
    return (
        f"### int4 weights in groups of {GROUP}: error of a layer's output on unseen inputs (`int4`)\n\n"
        f"MatMul of {width} x {width}, {rows} correlated rows (eigenvalues i^-1.5) to calibrate and {rows} to judge; squared error over squared"
        " output, activations in float32. Our seconds include verification and measuring.\n\n"
        + documents.table(("weights by", "error", f"of {_RTN}", "made in"), made)
    )
