"""Small networks, built in code."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


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
            [helper.make_node("Softmax", ["h"], ["y"], axis=-1)]
            if softmax
            else [helper.make_node("Identity", ["h"], ["y"])]
        )
        return serialise(
            [helper.make_node("MatMul", ["x", "w"], ["h"], "scores"), *last],
            {"x": [batch, weight.shape[0]]},
            {"y": TensorProto.FLOAT},
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
