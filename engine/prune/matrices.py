"""The layers whose weight matrices can be changed one by one, and the walk over them on the inputs that they really get."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.paired import Sums, Tap, paired_moments
from engine.contract import Context
from engine.data.subsets import First
from engine.graph import io
from engine.graph.names import require_nodes
from engine.quantize.weights import window

# Networks are run again after every stage; more stages follow the changed prefix more closely.
_STAGES = 16
_STAGE_BYTES = 512 << 20
_CALIBRATION_RUNS = 256

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Matrix:
    """A MatMul, Gemm or Conv with constant weights of its own."""

    node: ir.Node
    weight: ir.Value
    outputs_last: bool  # the weights are stored (inputs, outputs)

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.node.name or str(self.node.outputs[0].name)

    @property
    def array(self) -> Floats:
        """The weights as they are stored."""
        assert self.weight.const_value is not None
        found: Floats = self.weight.const_value.numpy()
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The weights' own shape."""
        assert self.weight.const_value is not None
        return tuple(int(size) for size in self.weight.const_value.shape.numpy())

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.shape[1] if self.outputs_last else self.shape[0]

    @property
    def inputs(self) -> int:
        """Number of weights of each output."""
        return math.prod(self.shape) // self.outputs

    @property
    def groups(self) -> int:
        """Independent parts: those of a grouped convolution."""
        return integer(self.node, "group", 1) if self.node.op_type == "Conv" else 1

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The weights as (outputs, inputs)."""
        array = self.array.T if self.outputs_last else self.array
        return np.array(array, np.float64).reshape(self.outputs, self.inputs)

    def tap(self) -> Tap:
        """Say what the walk has to collect."""
        tensor = str(cast("ir.Value", self.node.inputs[0]).name)
        return Tap(tensor, self.values, window(self.node, self.shape) if self.node.op_type == "Conv" else None)

    def write(self, values: Floats) -> None:
        """Store other weights, given as (outputs, inputs)."""
        store(self.weight, values.T if self.outputs_last else values.reshape(self.shape))


@dataclass
class Matrices:
    """Layers in topological order, and those left alone with the reason."""

    found: list[Matrix] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def left_alone(self) -> list[dict[str, str]]:
        """Give the refused ones as JSON."""
        return [{"node": node, "reason": reason} for node, reason in self.refused.items()]


def find(
    model: ir.Model, operators: Sequence[str], exclude: Sequence[str], objection: Callable[[Matrix], str | None]
) -> Matrices:
    """List the layers of these operators; `objection` gives a pass's own reason to leave one alone."""
    require_nodes(model, exclude)
    matrices = Matrices()
    for node in model.graph.all_nodes():
        if node.op_type not in operators or node.domain not in {"", "ai.onnx"}:
            continue
        reason = "the recipe excludes it" if node.name in exclude else next(_objections(model, node), None)
        if reason is None:
            weight = cast("ir.Value", node.inputs[1])
            last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not integer(node, "transB", 0))
            layer = Matrix(node, weight, last)
            reason = objection(layer)
            if reason is None:
                matrices.found.append(layer)
                continue
        matrices.refused[node.name or str(node.outputs[0].name)] = reason
    return matrices


def _objections(model: ir.Model, node: ir.Node) -> Iterator[str]:
    value, weight = node.inputs[0], node.inputs[1]
    if node.graph is not model.graph:
        yield "it stands inside of If or Loop"
    if weight is None or not weight.is_initializer() or weight.const_value is None or weight.is_graph_input():
        yield "its weights are not constant, or stand on the left"
        return
    if weight.const_value.dtype != ir.DataType.FLOAT:
        yield f"its weights are {weight.const_value.dtype.name.lower()}, not float32"
    if value is None or value.is_initializer():
        yield "its input is a constant"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        yield f"`{weight.name}` is shared with another operator"
    rank = len(weight.const_value.shape)
    if node.op_type == "Conv" and rank < 3:
        yield "its weights have no spatial axis"
    if node.op_type != "Conv" and rank != 2:
        yield "its weights are not one matrix"
    if node.op_type == "MatMul" and value is not None and value.shape is not None and len(value.shape) < 2:
        yield "its input is a vector"
    if node.op_type == "Gemm" and integer(node, "transA", 0):
        yield "its input is transposed"


def walk(
    model: ir.Model, layers: Sequence[Matrix], context: Context, *, stages: int = _STAGES
) -> Iterator[tuple[Matrix, Tap, Sums]]:
    """Give each layer's sums: inputs as they are in `model` now, targets as they were when the walk began.

    The caller changes the layer before it asks for the next one; the layers of a stage have seen the same prefix.
    """
    assert context.calibration is not None
    teacher = io.copy(model)
    samples = First(context.calibration, _CALIBRATION_RUNS)
    done = 0
    for stage in _stages(layers, stages):
        taps = {layer.name: layer.tap() for layer in stage}
        sums = paired_moments(teacher, model, taps, samples, context.target)
        for layer in stage:
            yield layer, taps[layer.name], sums[layer.name]
        done += len(stage)
        context.progress(0.7 * done / len(layers), f"solved {done} of {len(layers)} layers")


def _stages(layers: Sequence[Matrix], stages: int) -> Iterator[list[Matrix]]:
    most = -(-len(layers) // stages)
    stage: list[Matrix] = []
    size = 0
    for layer in layers:
        need = 2 * 8 * layer.inputs * (layer.inputs + layer.outputs)
        if stage and (len(stage) == most or size + need > _STAGE_BYTES):
            yield stage
            stage, size = [], 0
        stage.append(layer)
        size += need
    if stage:
        yield stage


def store(value: ir.Value, array: Floats) -> None:
    """Give an initializer another content."""
    made = np.array(array, np.float32, order="C")
    value.const_value = ir.tensor(made, name=value.name)
    value.shape = ir.Shape(made.shape)


def integer(node: ir.Node, name: str, default: int) -> int:
    """Read an integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def relative(error: float, energy: float) -> float:
    """Give an error as a share of the targets' energy, to four digits."""
    return float(f"{error / energy:.4g}") if energy > 0 else 0.0
