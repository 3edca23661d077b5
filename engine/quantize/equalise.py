"""Moves size between the channels of two neighbouring layers: activations become easy to round, the network stays the same.

Where nothing but a Relu stands between, a channel can be divided by a number that the next layer's weights are multiplied
with. After convolutions that is cross-layer equalisation (Nagel et al., 2019), after a LayerNormalization SmoothQuant (Xiao
et al., 2023): s = activation^alpha / weight^(1 - alpha) per channel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import ChannelRange
from engine.contract import Observe
from engine.graph import io
from engine.graph.linear import LinearLayer, is_constant
from engine.quantize.static_plan import StaticPlan

# A channel is scaled by at most this, and by a power of two's worth more nowhere: weights must stay far from overflow.
_MOST = 64.0

Floats = npt.NDArray[np.floating]
Change = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Site:
    """A tensor, what makes its channels, and the layers that read it."""

    value: ir.Value
    producer: ir.Node
    consumers: tuple[LinearLayer, ...]

    @property
    def axis(self) -> int:
        """Give the tensor's axis of channels."""
        return 1 if self.producer.op_type == "Conv" else -1

    @property
    def request(self) -> Observe:
        """Give the statistic that the factors need."""
        return Observe(str(self.value.name), "channel_range", axis=self.axis)

    @property
    def kind(self) -> str:
        """Say what the method is called here."""
        return "SmoothQuant" if self.producer.op_type == "LayerNormalization" else "cross-layer equalisation"


def sites(plan: StaticPlan) -> list[Site]:
    """Find the tensors whose channels can be scaled."""
    by_input: dict[ir.Value, list[LinearLayer]] = {}
    for layer in plan.layers:
        by_input.setdefault(layer.input, []).append(layer)
    quantized = {layer.node: layer for layer in plan.layers}
    return [site for value, readers in by_input.items() for site in _site(value, readers, quantized)]


def apply(model: ir.Model, found: Sequence[Site], statistics: Mapping[Observe, ChannelRange], alpha: float) -> bool:
    """Scale channels in place; give False if there was nothing to gain from."""
    taken = io.value_names(model)
    changed = False
    for site in found:
        if site.request not in statistics:
            continue
        factors = _factors(site, statistics[site.request], alpha)
        if np.allclose(factors, 1.0, rtol=1e-3):
            continue
        changed = True
        for index in _scaled_inputs(site.producer):
            _replace(
                model, site.producer, index, partial(_by_output, factors=1 / factors, producer=site.producer), taken
            )
        for layer in site.consumers:
            _replace(model, layer.node, 1, partial(_by_input, factors=factors, layer=layer), taken)
    return changed


def _site(value: ir.Value, readers: Sequence[LinearLayer], quantized: Mapping[ir.Node, LinearLayer]) -> Iterator[Site]:
    if value.is_graph_output() or {use.node for use in value.uses()} != {layer.node for layer in readers}:
        return
    producer = value.producer()
    if producer is not None and producer.op_type == "Relu":
        inner = producer.inputs[0]
        if inner is None or len(inner.uses()) != 1 or inner.is_graph_output():
            return
        producer = inner.producer()
    if producer is None or not _can_produce(producer, quantized):
        return
    if all(_can_consume(layer, producer) for layer in readers):
        yield Site(value, producer, tuple(readers))


def _can_produce(node: ir.Node, quantized: Mapping[ir.Node, LinearLayer]) -> bool:
    if node.op_type in {"Conv", "Gemm"}:
        return node in quantized
    axis = node.attributes.get("axis")
    return (
        node.op_type == "LayerNormalization"
        and (axis is None or axis.as_int() == -1)
        and len(node.outputs) == 1
        and all(_is_private_constant(value) for value in node.inputs[1:])
    )


def _can_consume(layer: LinearLayer, producer: ir.Node) -> bool:
    if not _is_private_constant(layer.weight):
        return False
    if (layer.is_convolution) != (producer.op_type == "Conv"):
        return False
    return layer.groups == 1 or _is_depthwise(layer)


def _is_depthwise(layer: LinearLayer) -> bool:
    return layer.is_convolution and layer.groups == layer.outputs and layer.shape[1] == 1


def _is_private_constant(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value)


def _factors(site: Site, observed: ChannelRange, alpha: float) -> Floats:
    """Give what each channel is divided by; their geometric mean is 1."""
    activation = np.maximum(np.abs(observed.low), np.abs(observed.high)).astype(np.float64)
    weight = np.max([_largest_by_input(layer) for layer in site.consumers], axis=0).astype(np.float64)
    alive = (activation > 1e-6 * activation.max(initial=0.0)) & (weight > 1e-6 * weight.max(initial=0.0))
    if not alive.any() or len(activation) != len(weight):
        return np.ones(max(len(weight), 1))
    factors = np.ones(len(activation))
    factors[alive] = activation[alive] ** alpha / weight[alive] ** (1 - alpha)
    factors[alive] /= np.exp(np.log(factors[alive]).mean())
    clipped: Floats = np.clip(factors, 1 / _MOST, _MOST)
    return clipped


def _largest_by_input(layer: LinearLayer) -> Floats:
    weight = np.abs(layer.tensor.numpy())
    if _is_depthwise(layer):
        return np.asarray(weight.reshape(len(weight), -1).max(1))
    inputs = 1 - layer.axis if not layer.is_convolution else 1
    return np.asarray(weight.max(axis=tuple(axis for axis in range(weight.ndim) if axis != inputs)))


def _by_input(weight: Floats, factors: Floats, layer: LinearLayer) -> Floats:
    if _is_depthwise(layer):
        return weight * factors.reshape(-1, *(1 for _ in weight.shape[1:]))
    if layer.is_convolution:
        return weight * factors.reshape(1, -1, *(1 for _ in weight.shape[2:]))
    return weight * (factors[:, None] if layer.axis == 1 else factors[None, :])


def _by_output(array: Floats, factors: Floats, producer: ir.Node) -> Floats:
    transposed = producer.attributes.get("transB")
    if producer.op_type == "Gemm" and array.ndim == 2 and not (transposed is not None and transposed.as_int()):
        return array * factors[None, :]
    if producer.op_type == "Gemm" and array.ndim == 2 and array.shape[0] == 1:
        return array * factors[None, :]  # a bias with a leading axis
    return array * factors.reshape(-1, *(1 for _ in array.shape[1:]))


def _scaled_inputs(producer: ir.Node) -> list[int]:
    return [index for index in (1, 2) if index < len(producer.inputs) and producer.inputs[index] is not None]


def _replace(model: ir.Model, node: ir.Node, index: int, change: Change, taken: set[str]) -> None:
    """Let a node read changed weights; the old ones may serve others."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    array = change(value.const_value.numpy()).astype(np.float32)
    name = io.unused_name(taken, f"{value.name}_scaled")
    new = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=value.type, shape=ir.Shape(array.shape))
    model.graph.register_initializer(new)
    node.replace_input_with(index, new)
    if not value.uses() and not value.is_graph_output():
        model.graph.initializers.pop(str(value.name), None)
