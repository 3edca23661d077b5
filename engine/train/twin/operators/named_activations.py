"""Activations that an attribute of another operator names: of recurrent layers and of layers that onnxruntime fused."""

from collections.abc import Callable
from functools import partial

from engine.errors import ModelUnsupportedError
from engine.train.framework import Tensor, functional, torch

Activation = Callable[[Tensor], Tensor]

# Defaults of alpha and beta as the ONNX standard gives them; an operator without parameters has none.
_DEFAULTS = {
    "affine": (1.0, 0.0),
    "elu": (1.0, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, 0.0),
    "scaledtanh": (1.0, 1.0),
    "thresholdedrelu": (1.0, 0.0),
    "clip": (float("-inf"), float("inf")),
}
_PLAIN: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
}


_PARAMETRISED: dict[str, Callable[..., Tensor]] = {
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "elu": lambda x, alpha, **_: functional.elu(x, alpha),
    "hardsigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0.0, 1.0),
    "leakyrelu": lambda x, alpha, **_: functional.leaky_relu(x, alpha),
    "scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "thresholdedrelu": lambda x, alpha, **_: functional.threshold(x, alpha, 0.0),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
}


def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Activation:
    """Give an activation by its name in any case; without parameters it takes the standard's."""
    kind = name.lower()
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind not in _DEFAULTS:
        raise ModelUnsupportedError(f"An activation named {name} cannot be trained through.")
    first, second = _DEFAULTS[kind]
    return partial(_PARAMETRISED[kind], alpha=first if alpha is None else alpha, beta=second if beta is None else beta)
