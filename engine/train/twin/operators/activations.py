"""Activations, and the softmax family in both of its meanings."""

from engine.errors import ModelUnsupportedError
from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator


@operator("Relu")
def relu(_: Node, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """X, and `alpha` of it where it is negative."""
    return functional.leaky_relu(x, node.number("alpha", 0.01))


@operator("PRelu")
def parametric_relu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """Leaky ReLU with a slope for each element; before operator set 7 slopes were by channel."""
    if node.version < 7 and slope.dim() == 1 and x.dim() > 2:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    """X where it is above `alpha`, 0 elsewhere."""
    return torch.where(x > node.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """Exponential linear unit."""
    return functional.elu(x, node.number("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    """Continuously differentiable exponential linear unit."""
    return functional.celu(x, node.number("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """Scaled exponential linear unit."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    return node.number("gamma", 1.05070102214813232421875) * functional.elu(x, alpha)


@operator("Sigmoid")
def sigmoid(_: Node, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """`alpha` x + `beta`, cut to 0..1."""
    return torch.clamp(node.number("alpha", 0.2) * x + node.number("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(_: Node, x: Tensor) -> Tensor:
    """X times the hard sigmoid of slope 1/6."""
    return functional.hardswish(x)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """X times the sigmoid of `alpha` x."""
    return x * torch.sigmoid(node.number("alpha", 1.0) * x)


@operator("Tanh")
def tanh(_: Node, x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@operator("Softplus")
def softplus(_: Node, x: Tensor) -> Tensor:
    """log(1 + exp(x)), also where exp(x) is beyond the type's range."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def softsign(_: Node, x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return functional.softsign(x)


@operator("Mish")
def mish(_: Node, x: Tensor) -> Tensor:
    """X times tanh of its softplus."""
    return functional.mish(x)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    """Towards zero by `bias`, and zero within `lambd`."""
    limit, bias = node.number("lambd", 0.5), node.number("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x))).to(x.dtype)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    """X times the normal distribution function of x, exact or by tanh."""
    return functional.gelu(x, approximate=node.text("approximate", "none"))


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax along `axis`; before operator set 13 over all axes from there on."""
    flat, axis = _rows(node, x)
    found = torch.softmax(flat, axis)
    if flat.requires_grad and flat.numel() and torch.isnan(found.detach().select(axis, 0)).any():
        # Rows that a mask bars as a whole are no numbers. Networks replace them, but the gradient would be none either.
        barred = torch.isneginf(flat.detach().amax(axis, keepdim=True))
        found = torch.softmax(flat.masked_fill(barred, 0.0), axis).masked_fill(barred, float("nan"))
    return found.reshape(x.shape)


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    """Logarithm of the softmax."""
    flat, axis = _rows(node, x)
    return torch.log_softmax(flat, axis).reshape(x.shape)


@operator("Hardmax")
def hardmax(node: Node, x: Tensor) -> Tensor:
    """1 at the first largest element, 0 elsewhere; its gradient is 0."""
    flat, axis = _rows(node, x)
    places = torch.argmax(flat, axis, keepdim=True)
    return torch.zeros_like(flat).scatter(axis, places, 1.0).reshape(x.shape)


@operator("Dropout", host=(1, 2))
def dropout(node: Node, x: Tensor, _: Tensor | None = None, training: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Identity, as at inference, with a mask that keeps everything."""
    if training is not None and bool(training):
        raise ModelUnsupportedError("It drops values at random whenever the network is used.", node=node.name)
    return x, torch.ones_like(x, dtype=torch.bool)


def _rows(node: Node, x: Tensor) -> tuple[Tensor, int]:
    """Give the tensor and the axis to normalise along: the last one of a matrix in old operator sets."""
    if node.version >= 13:
        return x, node.integer("axis", -1)
    axis = node.integer("axis", 1)
    rows = 1
    for size in x.shape[: axis % x.dim() if axis < 0 else axis]:
        rows *= size
    return x.reshape(rows, -1), 1
