"""int4 weights by GPTQ of an encoder of 110 M and a decoder of 0.5 B parameters, and of two layers of each beside onnxsim: time, memory, error."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import documents
from benchmarks.contest import HERE, SCRATCH
from benchmarks.peers import environments
from benchmarks.process import TIMEOUT_S, Spent, spend
from benchmarks.scores import Array
from engine.runtime.processor import threads
from engine.runtime.sessions import session
from engine.target import Target

_SAMPLES, _JUDGED, _TOKENS, _VOCABULARY = 256, 32, 128, 8192
_OURS, _RTN, _PEER = "onnxpress GPTQ", "onnxpress RTN", "onnxsim GPTQ"
# A peer that took so many times as long as ours is ended: what is asked is whether ours takes more than 1.5 times as long.
_PATIENCE = 1.5
_ONE_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes. A decoder has gated products and looks back only."""

    title: str
    layers: int
    width: int
    heads: int
    inner: int
    decoder: bool = False
    # Of the whole network, where only some of its layers are measured.
    all_layers: int | None = None


ENCODER = Shape("an encoder of 12 layers, 768 wide, as BERT-base", 12, 768, 12, 3072)
DECODER = Shape("a decoder of 24 layers, 896 wide, as one of 0.5 B parameters", 24, 896, 14, 4864, True)


def _layers(shape: Shape, count: int) -> Shape:
    title = f"{count} of the layers of {shape.title}"
    return replace(shape, title=title, layers=count, all_layers=shape.layers)


_TRIAL = Shape("a trial encoder", 2, 256, 4, 1024)
# What is measured by the name of a case. A peer's time for all layers would be that of many of ours.
SHAPES: Mapping[str, Mapping[str, Shape]] = {
    "gptq": {"encoder": ENCODER},
    "gptq_decoder": {"decoder": DECODER},
    "gptq_encoder_layers": {"encoder-layers": _layers(ENCODER, 2)},
    "gptq_decoder_layers": {"decoder-layers": _layers(DECODER, 2)},
}
_BESIDE = frozenset({"gptq_encoder_layers", "gptq_decoder_layers"})


def measure(case: str, *, quick: bool) -> tuple[dict[str, Any], str]:
    """Quantize each network by us, and of some layers by onnxsim too, each in its own process."""
    content: dict[str, Any] = {"case": case, "threads": threads(), "networks": {}}
    sections = []
    for name, shape in ({"trial": _TRIAL} if quick else SHAPES[case]).items():
        folder = SCRATCH / "quantization" / f"gptq-{name}{'-quick' if quick else ''}"
        model, data = _prepare(shape, folder)
        judged = {key: array[_SAMPLES:] for key, array in data.items()}
        wanted = _outputs(model, judged)
        outcomes = {each: _spent(each, model) for each in (_RTN, _OURS)}
        if case in _BESIDE:
            outcomes[_PEER] = _spent(_PEER, model, timeout=_PATIENCE * (outcomes[_OURS].seconds or TIMEOUT_S))
        errors = {each: _error(model.parent / each / "model.onnx", judged, wanted, outcomes[each]) for each in outcomes}
        content["networks"][name] = {each: {**vars(outcomes[each]), "error": errors[each]} for each in outcomes}
        sections.append(_table(shape, outcomes, errors))
    ended = f" A peer is ended after {_PATIENCE:g} times as long as ours took." if case in _BESIDE else ""
    intro = (
        f"### int4 weights in groups of 32 by GPTQ: time and memory (`{case}`)\n\n"
        f"Networks of random weights whose spread and outlying channels are those of trained ones; {_SAMPLES} samples of"
        f" {_TOKENS} tokens calibrate, {_JUDGED} others judge. Reading, quantizing and writing, in a process of its own,"
        f" {threads()} threads. Error: of the outputs, as a share of their energy.{ended}\n\n"
    )
    return content, intro + "\n\n".join(sections)


def _prepare(shape: Shape, folder: Path) -> tuple[Path, dict[str, Array]]:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "original.onnx"
    made = network(shape)
    # As exporters write large ones: it is then read tensor by tensor.
    onnx.save(made, model, save_as_external_data=made.ByteSize() > _ONE_FILE_BYTES, location="weights.bin")
    random = np.random.default_rng(1)
    # Words are as frequent as in a text: the n-th most common one has a share of about 1 / n.
    shares = 1 / np.arange(1, _VOCABULARY + 1)
    ids = random.choice(_VOCABULARY, (_SAMPLES + _JUDGED, _TOKENS), p=shares / shares.sum())
    data = {"input_ids": ids.astype(np.int64)}
    np.savez(folder / "calibration.npz", allow_pickle=False, **{key: array[:_SAMPLES] for key, array in data.items()})
    return model, data


def network(shape: Shape) -> onnx.ModelProto:
    """Build a transformer with a small vocabulary, which is not quantized."""
    random = np.random.default_rng(0)
    made = _Builder(random)
    x = made.add("Gather", made.weight((_VOCABULARY, shape.width), 1.0), "input_ids")
    positions = made.weight((1, _TOKENS, shape.width), 0.3)
    x = made.add("LayerNormalization", made.add("Add", x, positions), *made.norm(shape.width), axis=-1)
    for _ in range(shape.layers):
        x = made.attention(x, shape)
        x = made.feed_forward(x, shape)
    made.nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", _TOKENS])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", _TOKENS, shape.width])
    graph = helper.make_graph(made.nodes, "transformer", [ids], [hidden], made.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class _Builder:
    def __init__(self, random: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._random = random

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, array: Array) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, sizes: tuple[int, ...], scale: float) -> str:
        return self.constant(self._random.standard_normal(sizes, np.float32) * np.float32(scale))

    def norm(self, width: int) -> list[str]:
        # A few channels are many times larger than the others, as in trained transformers.
        gain = self._random.lognormal(0, 0.4, width)
        gain[self._random.choice(width, max(1, width // 128), replace=False)] *= 6
        return [self.constant(gain.astype(np.float32)), self.weight((width,), 0.1)]

    def product(self, x: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
        # Columns of falling size: inputs are not equally important.
        size = self._random.lognormal(0, 0.3, (inputs, 1)) / inputs**0.5
        drawn = self._random.standard_t(6, (inputs, outputs)) * size
        y = self.add("MatMul", x, self.constant(drawn.astype(np.float32)))
        return self.add("Add", y, self.weight((outputs,), 0.02)) if bias else y

    def attention(self, x: str, shape: Shape) -> str:
        width, each = shape.width, shape.width // shape.heads
        split = self.constant(np.array([0, _TOKENS, shape.heads, each], np.int64))
        parts = [self.add("Reshape", self.product(x, width, width), split) for _ in range(3)]
        query, key, value = (
            self.add("Transpose", part, perm=order)
            for part, order in zip(parts, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
        )
        scores = self.add("Mul", self.add("MatMul", query, key), self.constant(np.array(each**-0.5, np.float32)))
        if shape.decoder:
            hidden = np.triu(np.full((_TOKENS, _TOKENS), -1e4, np.float32), 1)
            scores = self.add("Add", scores, self.constant(hidden))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.constant(np.array([0, _TOKENS, width], np.int64))
        mixed = self.add("Reshape", self.add("Transpose", mixed, perm=(0, 2, 1, 3)), joined)
        return self._added(x, self.product(mixed, width, width), width)

    def feed_forward(self, x: str, shape: Shape) -> str:
        if shape.decoder:
            gate = self.product(x, shape.width, shape.inner, bias=False)
            gate = self.add("Mul", gate, self.add("Sigmoid", gate))
            inner = self.add("Mul", gate, self.product(x, shape.width, shape.inner, bias=False))
        else:
            up = self.product(x, shape.width, shape.inner)
            half = self.constant(np.array(0.5, np.float32))
            one = self.constant(np.array(1, np.float32))
            erf = self.add("Erf", self.add("Mul", up, self.constant(np.array(0.5**0.5, np.float32))))
            inner = self.add("Mul", self.add("Mul", up, half), self.add("Add", erf, one))
        return self._added(x, self.product(inner, shape.inner, shape.width), shape.width)

    def _added(self, x: str, y: str, width: int) -> str:
        return self.add("LayerNormalization", self.add("Add", x, y), *self.norm(width), axis=-1)


def _outputs(model: Path, feed: Mapping[str, Array]) -> Array:
    running = session(model, Target(threads=threads()))
    return np.concatenate([running.run(part)["hidden"] for part in _batches(feed)])


def _batches(feed: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    for start in range(0, len(feed["input_ids"]), 8):
        yield {name: array[start : start + 8] for name, array in feed.items()}


def _spent(name: str, model: Path, *, timeout: float = TIMEOUT_S) -> Spent:
    place = model.parent / name
    request: dict[str, Any] = {
        "model": str(model),
        "out": str(place / "model.onnx"),
        "calibration": str(model.with_name("calibration.npz")),
    }
    if name != _PEER:
        method = {_OURS: "gptq", _RTN: "rtn"}[name]
        # Tables of embeddings stay as they are: onnxsim leaves them too.
        step = {"type": "quantize_weights", "bits": 4, "group": 32, "method": method, "accuracy": "float32"}
        request["settings"] = {**step, "operators": ["MatMul"]}
        return spend(Path(sys.executable), HERE / "engine_pass.py", request, place)
    request["settings"] = {"method": "gptq"}
    try:
        python = environments.interpreter("onnxsim")
    except environments.PeerMissingError as error:
        return Spent(problem=f"cannot be installed: {error}")
    return spend(python, HERE / "peers" / "onnxsim_weights.py", request, place, timeout=timeout)


def _error(path: Path, feed: Mapping[str, Array], wanted: Array, spent: Spent) -> float | None:
    if spent.problem is not None:
        return None
    got = _outputs(path, feed)
    return float(np.square(got - wanted, dtype=np.float64).sum() / np.square(wanted, dtype=np.float64).sum())


def _table(shape: Shape, outcomes: Mapping[str, Spent], errors: Mapping[str, float | None]) -> str:
    factor = (shape.all_layers or shape.layers) / shape.layers
    header = [
        "quantized by",
        "time",
        *(["all layers, by their number"] if factor > 1 else []),
        "CPU",
        "peak memory",
        "error",
    ]
    rows = []
    for name, spent in outcomes.items():
        whole = [documents.seconds((spent.seconds or 0) * factor)] if factor > 1 else []
        error = errors[name]
        told = spent.problem or ("" if error is None else f"{error:.2e}")
        rows.append(
            [
                name,
                documents.seconds(spent.seconds),
                *whole,
                documents.seconds(spent.cpu_seconds),
                documents.megabytes(spent.peak_rss_bytes),
                told,
            ]
        )
    return f"{shape.title[0].upper()}{shape.title[1:]}:\n\n" + documents.table(header, rows)
