"""Linear layers that are changed one after the other, each on the inputs that it really gets by then."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from engine.calibrate.paired import STAGES, Sums, Tap, in_stages, paired_moments
from engine.contract import Context
from engine.data.subsets import First
from engine.graph import io, linear
from engine.graph.linear import LinearLayer
from engine.graph.names import require_nodes

_CALIBRATION_RUNS = 256


@dataclass
class Layers:
    """Layers in topological order, and those left alone with the reason."""

    found: list[LinearLayer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def find(
    model: ir.Model, operators: Sequence[str], exclude: Sequence[str], objection: Callable[[LinearLayer], str | None]
) -> Layers:
    """List the layers of these operators; `objection` gives a method's own reason to leave one alone."""
    require_nodes(model, exclude)
    layers = Layers()
    for node in model.graph.all_nodes():
        if node.op_type not in operators or node.domain not in linear.STANDARD:
            continue
        layer = linear.read(node)
        if node.name in exclude:
            layers.refused[linear.node_name(node)] = "the recipe excludes it"
        elif node.graph is not model.graph:
            layers.refused[linear.node_name(node)] = "it stands inside of If or Loop"
        elif isinstance(layer, LinearLayer):
            reason = next(_objections(layer), None) or objection(layer)
            if reason is None:
                layers.found.append(layer)
            else:
                layers.refused[layer.name] = reason
        elif layer is not None:
            layers.refused[linear.node_name(node)] = layer
    return layers


def _objections(layer: LinearLayer) -> Iterator[str]:
    if layer.on_left:
        yield "its weights stand on the left"
    if layer.shared:
        yield f"`{layer.weight.name}` is shared with another operator"
    if layer.reads_vector:
        yield "its input is a vector"
    if layer.reads_transposed:
        yield "its input is transposed"


def walk(
    model: ir.Model, layers: Sequence[LinearLayer], context: Context, *, stages: int = STAGES
) -> Iterator[tuple[LinearLayer, Sums]]:
    """Give each layer's sums: inputs as they are in `model` now, targets as they were when the walk began.

    The caller changes the layer before it asks for the next one; the layers of a stage have seen the same prefix.
    """
    assert context.calibration is not None
    teacher = io.copy(model)
    samples = First(context.calibration, _CALIBRATION_RUNS)
    done = 0
    for stage in in_stages(layers, stages):
        taps = {layer.name: Tap(str(layer.input.name), layer.matrix(), layer.window()) for layer in stage}
        sums = paired_moments(teacher, model, taps, samples, context.untimed, working=context.working)
        for layer in stage:
            yield layer, sums[layer.name]
        done += len(stage)
        context.progress(0.7 * done / len(layers), f"solved {done} of {len(layers)} layers")


def relative(error: float, energy: float) -> float:
    """Give an error as a share of the targets' energy, to four digits."""
    return float(f"{error / energy:.4g}") if energy > 0 else 0.0
