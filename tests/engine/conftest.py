"""Small image networks, built in code, and workspaces for whole jobs."""

import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract import Context
from engine.data.dataset import Samples
from engine.job import timing, workbench
from engine.measure import acceptance, latency
from engine.target import Target


@pytest.fixture
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """For jobs whose times do not matter here, only that they are taken: what a busy machine makes of them decides nothing."""
    monkeypatch.setattr(acceptance, "_SLOWER", 100.0)
    # Of a process that has loaded as much as this one it takes longer than the runs.
    monkeypatch.setattr(latency, "_no_garbage_collection", nullcontext)
    for module, name in ((workbench, "_RACE_SECONDS"), (timing, "STEP_TIMED_S"), (timing, "RESULT_TIMED_S")):
        monkeypatch.setattr(module, name, 0.1)


class Network:
    """Collects nodes and weights; every method gives the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights[name] = array
        return name

    def normal(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.weight(name, (self.random.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, *, name: str, group: int = 1, stride: int = 1) -> str:
        fan_in = cin // group * kernel * kernel
        w = self.normal(f"{name}.w", cout, cin // group, kernel, kernel, scale=(2 / fan_in) ** 0.5)
        b = self.normal(f"{name}.b", cout, scale=0.1)
        pad = kernel // 2
        return self.op("Conv", x, w, b, name=name, pads=[pad] * 4, strides=[stride] * 2, group=group)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def norm(self, x: str, channels: int, *, name: str) -> str:
        parts = [
            self.weight(f"{name}.g", self.random.uniform(0.5, 1.5, channels).astype(np.float32)),
            self.normal(f"{name}.b", channels),
            self.normal(f"{name}.m", channels),
            self.weight(f"{name}.v", self.random.uniform(0.5, 1.5, channels).astype(np.float32)),
        ]
        return self.op("BatchNormalization", x, *parts, name=name)

    def build(
        self,
        output: str,
        shape: tuple[int | str, ...] = ("n", 3, 12, 12),
        out_shape: tuple[int | str, ...] | None = ("n", 5),
        *,
        opset: int = 18,
        ir_version: int = 10,
        declare_weights: bool = False,
    ) -> bytes:
        self.nodes.append(helper.make_node("Identity", [output], ["scores"], "last"))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, out_shape)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        if declare_weights:  # as networks before IR version 4 have to
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer)
        model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
        onnx.checker.check_model(model, full_check=True)
        serialized: bytes = model.SerializeToString()
        return serialized


def residual(**options: Any) -> bytes:
    """Stem, one residual block, a strided block with a 1x1 shortcut, pool, Gemm: what convolutional networks are made of."""
    net = Network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    x = net.relu(net.op("Add", net.conv(net.relu(net.conv(x, 16, 16, name="a1")), 16, 16, name="a2"), x, name="add1"))
    y = net.conv(net.relu(net.conv(x, 16, 32, name="b1", stride=2)), 32, 32, name="b2")
    x = net.relu(net.op("Add", y, net.conv(x, 16, 32, 1, name="short", stride=2), name="add2"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"))
    head = net.op("Gemm", flat, net.normal("head.w", 5, 32), net.normal("head.b", 5), name="head", transB=1)
    return net.build(head, **options)


@pytest.fixture
def network() -> type[Network]:
    return Network


@pytest.fixture
def residual_cnn() -> Callable[..., bytes]:
    return residual


@pytest.fixture
def images() -> Callable[..., np.ndarray]:
    """Images as uint8: blurred noise, so that neighbouring pixels are alike as in photographs."""

    def make(count: int, channels: int = 3, size: int = 12, seed: int = 1) -> np.ndarray:
        random = np.random.default_rng(seed)
        coarse = random.uniform(0, 1, (count, channels, size // 3, size // 3))
        smooth = np.kron(coarse, np.ones((1, 1, 3, 3))) * 200 + random.uniform(0, 55, (count, channels, size, size))
        return smooth.astype(np.uint8)

    return make


@pytest.fixture
def feeds_of() -> Callable[..., Samples]:
    def make(arrays: Mapping[str, np.ndarray], dtype: type = np.float32) -> Samples:
        count = len(next(iter(arrays.values())))
        return Samples(arrays, dict.fromkeys(arrays, np.dtype(dtype)), np.arange(count))

    return make


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """What the pipeline offers a pass, with a race in which nobody is faster."""
    from engine.calibrate import observe

    def make(
        model: ir.Model,
        samples: Samples,
        target: Target | None = None,
        ratios: tuple[float, ...] = (),
        *,
        select: Samples | None = None,
    ) -> Context:
        target = target or Target()
        return Context(
            original=model,
            target=target,
            calibration=samples,
            select=select or samples,
            evaluate=lambda _model: (),
            observe=lambda network, requests: observe(network, requests, samples, target, scratch=tmp_path),
            progress=lambda _fraction, _message: None,
            race=lambda models: ratios or [1.0] * len(models),
            working=nullcontext,
            measuring=nullcontext,
            checkpoint=tmp_path,
        )

    return make


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the arrays that somebody still holds as a run gave them, in the session's memory, whether or not it is loaded."""
    from engine.runtime.loading import Session

    given: list[weakref.ref[np.ndarray]] = []
    genuine = Session.run

    def run(self: Session, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        found = genuine(self, feed)
        given.extend(weakref.ref(array) for array in found.values())
        return found

    monkeypatch.setattr(Session, "run", run)
    return lambda: sum(each() is not None for each in given)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes plan for a processor whose integer kernels saturate, wherever the tests run."""
    from engine.runtime import processor

    monkeypatch.setattr(processor, "cpu_profile", lambda: processor.CpuProfile("a processor", ("avx2",), 1, "avx2"))


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[..., Path]:
    """A job's folder: the network and its data in place."""

    def make(model: bytes, *, name: str = "job", metric: str | None = None, **arrays: np.ndarray) -> Path:
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.onnx").write_bytes(model)
        if arrays:
            (folder / "data").mkdir()
            np.savez(folder / "data" / "data.npz", allow_pickle=False, **arrays)
            (folder / "data" / "dataset.json").write_text(json.dumps({"metric": metric} if metric else {}))
        return folder

    return make


class Arrays:
    """Samples held in memory."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, size: int) -> Iterator[Mapping[str, np.ndarray]]:
        for at in range(0, len(self), size):
            yield {name: array[at : at + size] for name, array in self.arrays.items()}


def serialise(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, int],
    initializers: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    foreign: str | None = None,
) -> bytes:
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(foreign, 1)] if foreign else [])]
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=imports).SerializeToString()


@pytest.fixture
def arrays() -> type[Arrays]:
    return Arrays


@pytest.fixture
def build() -> Callable[..., bytes]:
    return serialise


@pytest.fixture
def linear() -> Callable[..., bytes]:
    """y = x W (+ softmax): a classifier whose decisions are those of its weight."""

    def make(weight: np.ndarray, *, batch: int | str = "n", softmax: bool = False) -> bytes:
        last = (
            [helper.make_node("Softmax", ["h"], ["logits"], axis=-1)]
            if softmax
            else [helper.make_node("Identity", ["h"], ["logits"])]
        )
        return serialise(
            [helper.make_node("MatMul", ["x", "w"], ["h"], "scores"), *last],
            {"x": [batch, weight.shape[0]]},
            {"logits": TensorProto.FLOAT},
            {"w": weight.astype(np.float32)},
        )

    return make


@pytest.fixture
def convolutions() -> Callable[[int], bytes]:
    """A chain of Conv + Relu, so that its work grows with its length."""

    def make(layers: int, channels: int = 16, size: int = 16) -> bytes:
        rng = np.random.default_rng(0)
        nodes, weights, at = [], {}, "x"
        for layer in range(layers):
            weights[f"w{layer}"] = (rng.normal(size=(channels, channels, 3, 3)) * 0.05).astype(np.float32)
            out = "y" if layer == layers - 1 else f"r{layer}"
            nodes.append(helper.make_node("Conv", [at, f"w{layer}"], [f"c{layer}"], f"conv{layer}", pads=[1] * 4))
            nodes.append(helper.make_node("Relu", [f"c{layer}"], [out], f"relu{layer}"))
            at = out
        return serialise(nodes, {"x": ["n", channels, size, size]}, {"y": TensorProto.FLOAT}, weights)

    return make
