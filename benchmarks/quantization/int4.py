"""Error of layers' outputs with int4 weights in groups of 32, on inputs that no tool has seen: made ones and real ones."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import documents
from benchmarks.cases import UNLABELLED, named
from benchmarks.contest import HERE, ONE_THREAD, SCRATCH
from benchmarks.peers import environments
from benchmarks.process import Spent, spend
from benchmarks.scores import Array
from engine import EngineError
from engine.runtime.sessions import Session, session

GROUP = 32
_JUDGED = 128
_POWERS = (0.5, 1.0, 1.3, 1.5, 2.0)
# Among the encoder's products with weights: six a block.
_PRODUCTS = {"1 query": 0, "1 output": 3, "1 up": 4, "1 down": 5, "4 query": 18, "4 down": 23, "6 up": 34, "6 down": 35}
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


@dataclass(frozen=True)
class Layer:
    """Weights (inputs, outputs), rows to calibrate with and rows to judge by."""

    weights: Array
    calibration: Array
    held_out: Array


def measure(*, quick: bool) -> tuple[dict[str, Any], str]:
    """Quantize by everybody and compare the squared error of each layer's output on held-out rows."""
    width, rows = (256, 1024) if quick else (1024, 8192)
    folder = SCRATCH / "quantization" / "int4"
    layers = {**_synthetic(width, rows), **_real(rows)}
    together = _stage(layers, folder)
    alone = [_stage({name: layer}, folder / f"layer{index}") for index, (name, layer) in enumerate(layers.items())]
    _write_dataset(together, layers)
    outcomes: dict[str, dict[str, Any]] = {}
    for name, (peer, settings) in _PEERS.items():
        outcomes[name] = _peer_outcome(name, peer, settings, together, alone)
    for name, settings in _OURS.items():
        outcomes[name] = _judged(_by_us(name, settings, together.model), name, together)
    spread = {name: _spread(layer.calibration) for name, layer in layers.items()}
    content = {"case": "int4", "spread": spread, "width": width, "rows": rows, "entries": outcomes}
    return content, _markdown(outcomes, spread, width, rows)


@dataclass(frozen=True)
class Stage:
    """A stored network of layers side by side, rows to judge by, and what it makes of them."""

    model: Path
    held_out: Mapping[str, Array]
    wanted: Mapping[str, Array]


def _stage(layers: Mapping[str, Layer], folder: Path) -> Stage:
    folder.mkdir(parents=True, exist_ok=True)
    model = _network(layers, folder / "original.onnx")
    np.savez(folder / "calibration.npz", allow_pickle=False, **_feed(each.calibration for each in layers.values()))
    held_out = _feed(each.held_out for each in layers.values())
    return Stage(model, held_out, session(model, ONE_THREAD).run(held_out))


def _peer_outcome(
    name: str, peer: str, settings: Mapping[str, Any], together: Stage, alone: Sequence[Stage]
) -> dict[str, Any]:
    """Give a peer's outcome on all layers in one network; where it cannot take that, on each layer alone."""
    outcome = _judged(_by_peer(name, peer, settings, together.model), name, together)
    if outcome["problem"] is None:
        return outcome
    parts = [_judged(_by_peer(name, peer, settings, stage.model), name, stage) for stage in alone]
    if all(part["errors"] is None for part in parts):
        return outcome
    return {
        "seconds": sum(part["seconds"] or 0.0 for part in parts),
        "problem": None,
        "problem_with_all": outcome["problem"],
        "errors": [None if part["errors"] is None else part["errors"][0] for part in parts],
    }


def _spread(rows: Array) -> float:
    """Geometric over arithmetic mean of the eigenvalues of X^T X.

    That is about what feeding back errors can gain over rounding: rounding pays for each direction alike, a nearest-plane
    rounding (which GPTQ is) for the squared diagonal of the Cholesky factor, whose geometric mean this is.
    """
    wide = rows.astype(np.float64)
    values = np.maximum(np.linalg.eigvalsh(wide.T @ wide), 1e-12)
    return float(np.exp(np.log(values).mean()) / values.mean())


def _synthetic(width: int, rows: int) -> dict[str, Layer]:
    """Rows whose covariance has eigenvalues that fall by a power law, from nearly alike to a few that rule; random weights."""
    random = np.random.default_rng(0)
    found = {}
    for power in _POWERS:
        mixing = np.linalg.qr(random.standard_normal((width, width)))[0]
        drawn = (random.standard_normal((2 * rows, width)) * np.arange(1, width + 1) ** (-power / 2)) @ mixing
        drawn = (drawn / drawn.std()).astype(np.float32)
        weights = random.standard_normal((width, width)).astype(np.float32) / np.float32(width**0.5)
        found[f"i^-{power}"] = Layer(weights, drawn[:rows], drawn[rows:])
    return found


def _real(rows: int) -> dict[str, Layer]:
    """Layers of MiniLM with what they read: tokens of reviews that calibrate, and of others; no padding."""
    case = named(["minilm"])[0]
    model, data = onnx.load(case.path), case.data()
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    chosen = {name: products[index] for name, index in _PRODUCTS.items()}
    for tensor in {node.input[0] for node in chosen.values()}:
        model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    running = session(model.SerializeToString(), ONE_THREAD)
    calibration = _tokens(running, data.calibration, rows)
    held_out = _tokens(running, data.test, rows)
    return {
        f"MiniLM {name}": Layer(
            numpy_helper.to_array(constants[node.input[1]]), calibration[node.input[0]], held_out[node.input[0]]
        )
        for name, node in chosen.items()
    }


def _tokens(running: Session, samples: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Give so many rows of every tensor of three axes, spread evenly over the samples' tokens."""
    present = samples["attention_mask"].astype(bool)
    count = -(-rows // int(present[: len(present)].sum(axis=1).mean())) * 2
    found: dict[str, list[Array]] = {}
    for start in range(0, min(count, len(present)), 32):
        chosen = slice(start, start + 32)
        outputs = running.run({name: array[chosen] for name, array in samples.items()})
        for name, array in outputs.items():
            if array.ndim == 3:
                found.setdefault(name, []).append(array[present[chosen]])
    every = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: array[np.linspace(0, len(array) - 1, rows).astype(int)] for name, array in every.items()}


def _feed(rows: Iterable[Array]) -> dict[str, Array]:
    return {f"x{index}": each for index, each in enumerate(rows)}


def _network(layers: Mapping[str, Layer], path: Path) -> Path:
    """All layers side by side, each with an input and an output of its own."""
    nodes, inputs, outputs, weights = [], [], [], []
    for index, layer in enumerate(layers.values()):
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"y{index}"], name=f"layer{index}"))
        sizes = layer.weights.shape
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, ["rows", sizes[0]]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["rows", sizes[1]]))
        weights.append(numpy_helper.from_array(layer.weights, f"w{index}"))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def _write_dataset(stage: Stage, layers: Mapping[str, Layer]) -> None:
    """A dataset for the engine: the rows that calibrate, and a few of them again with labels, which do not.

    Labels are what tells the two apart; here they are the largest output of the first layer.
    """
    judged = _feed(each.calibration[:_JUDGED] for each in layers.values())
    label = session(stage.model, ONE_THREAD).run(judged)["y0"].argmax(axis=1).astype(np.int64)
    rows = _feed(np.concatenate([each.calibration, each.calibration[:_JUDGED]]) for each in layers.values())
    count = len(rows["x0"]) - _JUDGED
    marks = np.concatenate([np.full(count, UNLABELLED, np.int64), label])
    np.savez(stage.model.with_name("dataset.npz"), allow_pickle=False, **rows, label=marks)


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


def _judged(spent: Spent, name: str, stage: Stage) -> dict[str, Any]:
    outcome: dict[str, Any] = {"seconds": spent.seconds, "problem": spent.problem, "errors": None}
    if spent.value.get("unchanged"):
        outcome["problem"] = "; ".join(str(step["reason"]) for step in spent.value["steps"])
    if outcome["problem"] is None:
        try:
            got = session(stage.model.parent / name / "model.onnx", ONE_THREAD).run(stage.held_out)
        except EngineError as error:
            return {**outcome, "problem": f"does not run: {error.message.splitlines()[0]}"}
        outcome["errors"] = [
            float(np.square(got[name] - array).sum() / np.square(array).sum()) for name, array in stage.wanted.items()
        ]
    return outcome


def _markdown(outcomes: Mapping[str, dict[str, Any]], spread: Mapping[str, float], width: int, rows: int) -> str:
    layers = list(spread)
    plain = outcomes[_RTN]["errors"]
    made = []
    for name, outcome in outcomes.items():
        if outcome["errors"] is None:
            made.append([name, *[""] * len(layers), outcome["problem"]])
            continue
        shares = [
            "fails" if error is None else f"{error / base:.2f}"
            for error, base in zip(outcome["errors"], plain or outcome["errors"], strict=True)
        ]
        if name == _RTN:
            shares = [f"{error:.2e}" for error in outcome["errors"]]
        made.append([name, *shares, documents.seconds(outcome["seconds"])])
    made.append(["*geometric over arithmetic mean*", *(f"{value:.2f}" for value in spread.values()), ""])
    return (
        f"### int4 weights in groups of {GROUP}: error of a layer's output on unseen inputs (`int4`)\n\n"
        f"Squared error over squared output, activations in float32; the first line gives the error itself, the others multiples"
        f" of it. `i^-p`: random weights {width} x {width} on rows whose covariance has eigenvalues that fall like that."
        f" `MiniLM`: layers of the encoder on what they read. {rows} rows calibrate, {rows} others judge. All layers stand in one network, or"
        " where a tool cannot take that, in one each. The last line is the geometric over the arithmetic mean of the eigenvalues of the inputs' X^T X: about what feeding back errors can gain over rounding. Our seconds include"
        " verification and measuring.\n\n" + documents.table(("weights by", *layers, "made in"), made)
    )
