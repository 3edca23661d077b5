"""A stack of MatMuls of 2.7 GB in external data: peak memory and time of quantizing its weights."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import documents
from benchmarks.contest import HERE, SCRATCH
from benchmarks.peers import environments
from benchmarks.process import Spent, spend
from engine.runtime.network_files import stored_bytes

WIDTH, LAYERS = 4096, 40
_PEERS: Mapping[str, Mapping[str, Any]] = {
    "onnxruntime int4 RTN": {"method": "rtn", "group": 32, "external": True},
    "onnxruntime int8 dynamic": {"method": "dynamic", "external": True},
}
_OURS: Mapping[str, Mapping[str, Any]] = {
    "onnxpress int4 RTN": {"type": "quantize_weights", "bits": 4, "group": 32, "method": "rtn"},
    "onnxpress int8 RTN": {"type": "quantize_weights", "bits": 8, "group": 32, "method": "rtn"},
    "onnxpress int8 dynamic": {"type": "quantize_dynamic"},
}


def measure(*, quick: bool) -> tuple[dict[str, Any], str]:
    """Quantize the stack by everybody, each in its own process."""
    width, layers = (1024, 8) if quick else (WIDTH, LAYERS)
    folder = SCRATCH / "quantization" / f"large-{width}x{layers}"
    model = _stack(width, layers, folder)
    outcomes: dict[str, tuple[Spent, int | None]] = {}
    for name, settings in [*_PEERS.items(), *_OURS.items()]:
        place = folder / name.replace(" ", "_")
        out = place / "model.onnx"
        _clear(place)
        spent = _spent(name, settings, model, out)
        outcomes[name] = spent, stored_bytes(out) if spent.problem is None else None
        _clear(place)  # several gigabytes each
    size = stored_bytes(model)
    entries = {name: {**vars(spent), "bytes": stored} for name, (spent, stored) in outcomes.items()}
    return {"case": "large", "bytes": size, "entries": entries}, _markdown(outcomes, width, layers, size)


def _stack(width: int, layers: int, folder: Path) -> Path:
    """Write the network, one layer in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    path, weights = folder / "original.onnx", folder / "original.bin"
    step = 4 * width * width
    if not (path.exists() and weights.exists() and weights.stat().st_size == step * layers):
        random = np.random.default_rng(0)
        with weights.open("wb") as stream:
            for _ in range(layers):
                drawn = random.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
                stream.write(drawn.tobytes())
        tensors = [_external(f"w{at}", width, weights.name, at * step, step) for at in range(layers)]
        names = ["x", *(f"h{at}" for at in range(layers - 1)), "y"]
        nodes = [
            helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]], name=f"layer{at}")
            for at in range(layers)
        ]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "stack", ports[:1], ports[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path.write_bytes(model.SerializeToString())
    return path


def _external(name: str, width: int, location: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[width, width])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _spent(name: str, settings: Mapping[str, Any], model: Path, out: Path) -> Spent:
    request = {"model": str(model), "out": str(out), "settings": dict(settings)}
    if name in _OURS:
        return spend(Path(sys.executable), HERE / "engine_pass.py", request, out.parent)
    try:
        python = environments.interpreter("onnxruntime")
    except environments.PeerMissingError as error:
        return Spent(problem=f"cannot be installed: {error}")
    return spend(python, HERE / "peers" / "onnxruntime_weights.py", request, out.parent)


def _clear(place: Path) -> None:
    """Remove networks and their data; request, answer and log stay."""
    for file in place.glob("*"):
        if file.suffix not in {".json", ".txt"}:
            file.unlink()


def _markdown(outcomes: Mapping[str, tuple[Spent, int | None]], width: int, layers: int, size: int) -> str:
    rows = [
        [
            name,
            spent.problem or f"{(spent.peak_rss_bytes or 0) / 1e6:,.0f} MB",
            documents.seconds(spent.seconds),
            documents.megabytes(stored),
        ]
        for name, (spent, stored) in outcomes.items()
    ]
    return (
        f"### Weights of {size / 1e9:.1f} GB in external data (`large`)\n\n"
        f"{layers} MatMuls of {width} x {width}. Reading, quantizing and writing, in a process of its own.\n\n"
        + documents.table(("quantized by", "peak memory", "time", "result"), rows)
    )
