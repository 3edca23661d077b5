"""Normalisations: of batches, channels, layers and neighbours."""

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.table import operator

_CONTRIB = "com.microsoft"


@operator("BatchNormalization")
def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Normalise channels by the stored statistics, or by the batch's where the node is in training mode."""
    epsilon = node.number("epsilon", 1e-5)
    if node.integer("training_mode", 0):
        return _by_the_batch(node, x, scale, bias, mean, variance)
    if not (mean.requires_grad or variance.requires_grad):
        return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)
    # PyTorch's own does not differentiate by the statistics.
    factor = scale * torch.rsqrt(variance + epsilon)
    return x * _channels(factor, x) + _channels(bias - mean * factor, x)


def _by_the_batch(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, ...]:
    momentum = node.number("momentum", 0.9)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    here, spread = x.mean(dim=axes), x.var(dim=axes, unbiased=False)
    factor = scale * torch.rsqrt(spread + node.number("epsilon", 1e-5))
    result = x * _channels(factor, x) + _channels(bias - here * factor, x)
    return result, mean * momentum + here * (1 - momentum), variance * momentum + spread * (1 - momentum)


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise each channel of each sample."""
    return torch.group_norm(x, x.shape[1], scale, bias, node.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise groups of channels; before operator set 21 there is one scale for each group, since then for each channel."""
    groups = node.integer("num_groups", 1)
    if node.version < 21:
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, node.number("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Normalise over `axis` and those after it; gives mean and inverse deviation too where the node asks for them."""
    axis = node.integer("axis", -1) % x.dim()
    return _layer_norm(node, x, scale, bias, axis)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Divide by the root of the mean square over `axis` and those after it (Zhang and Sennrich 2019)."""
    return _rms_norm(node, x, scale, node.integer("axis", -1) % x.dim())


@operator("SkipLayerNormalization", domain=_CONTRIB)
def skip_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Normalise the sum of `x`, `skip` and `bias` over its last axis; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    made = _layer_norm(node, total, scale, shift, total.dim() - 1, epsilon=1e-12)
    result, mean, inverse = made if isinstance(made, tuple) else (made, None, None)
    return result, mean, inverse, total


@operator("SkipSimplifiedLayerNormalization", domain=_CONTRIB)
def skip_rms_normalization(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Divide the sum of `x`, `skip` and `bias` by its root mean square over the last axis; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    made = _rms_norm(node, total, scale, total.dim() - 1, epsilon=1e-12)
    result, inverse = made if isinstance(made, tuple) else (made, None)
    return result, None, inverse, total


@operator("LRN")
def local_response_normalization(node: Node, x: Tensor) -> Tensor:
    """Divide by a power of the squares of `size` neighbouring channels (Krizhevsky et al. 2012)."""
    size = node.integer("size", 1)
    before = (size - 1) // 2
    squares = x.square().unsqueeze(0)
    squares = functional.pad(squares, [0, 0] * (x.dim() - 2) + [before, size - 1 - before]).squeeze(0)
    sums = sum(squares.narrow(1, offset, x.shape[1]) for offset in range(size))
    divisor = node.number("bias", 1.0) + node.number("alpha", 1e-4) / size * sums
    return x / divisor.pow(node.number("beta", 0.75))


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    """Divide by the 1-norm or the 2-norm along an axis; zeros stay zeros."""
    axis = node.integer("axis", -1)
    if node.integer("p", 2) == 1:
        norm = x.abs().sum(dim=axis, keepdim=True)
    else:
        # The slope of a root is infinite at zero, so that a line of zeros would send NaN back.
        norm = x.square().sum(dim=axis, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation over `axes`."""
    if node.version < 9:
        axes = [0, 2, 3] if node.integer("across_channels", 0) == 0 else [0, 1, 2, 3]
    else:
        axes = node.integers("axes") or [0, 2, 3]
    centred = x - x.mean(dim=axes, keepdim=True)
    # The slope of a root is infinite at zero, so that a constant channel would send NaN back.
    variance = centred.square().mean(dim=axes, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return centred / (variance.sqrt() + 1e-9)


def _layer_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, *, epsilon: float = 1e-5
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    epsilon, sizes = node.number("epsilon", epsilon), x.shape[axis:]
    fits = scale.shape == sizes and (bias is None or bias.shape == sizes)
    if fits and not _asked(node, 1) and not _asked(node, 2):
        return functional.layer_norm(x, sizes, scale, bias, epsilon)
    axes = list(range(axis, x.dim()))
    mean = x.mean(dim=axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)
    result = centred * inverse * scale
    return result if bias is None else result + bias, mean, inverse


def _rms_norm(
    node: Node, x: Tensor, scale: Tensor, axis: int, *, epsilon: float = 1e-5
) -> Tensor | tuple[Tensor, Tensor]:
    epsilon = node.number("epsilon", epsilon)
    axes = list(range(axis, x.dim()))
    inverse = torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + epsilon)
    return x * inverse * scale, inverse


def _asked(node: Node, output: int) -> bool:
    return len(node.outputs) > output and bool(node.outputs[output])


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    """Lay a vector along the channels, the second axis."""
    return vector.reshape(-1, *[1] * (x.dim() - 2))
