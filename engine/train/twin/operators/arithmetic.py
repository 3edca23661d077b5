"""Arithmetic, element by element, with broadcasting."""

from collections.abc import Callable
from functools import reduce

from engine.train.framework import Tensor, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.broadcasting import aligned
from engine.train.twin.table import operator
from engine.train.twin.tensors import wrapped


@operator("Add")
def add(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Sum."""
    return left + aligned(node, left, right)


@operator("Sub")
def subtract(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Difference."""
    return left - aligned(node, left, right)


@operator("Mul")
def multiply(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Product."""
    return left * aligned(node, left, right)


@operator("Div")
def divide(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Quotient; integers are cut towards zero, as in C."""
    right = aligned(node, left, right)
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


@operator("Pow")
def power(node: Node, base: Tensor, exponent: Tensor) -> Tensor:
    """Power, in the type of the base."""
    exponent = aligned(node, base, exponent)
    if (
        exponent.numel() == 1
        and not exponent.requires_grad
        and exponent.device.type == "cpu"
        and exponent.dim() <= base.dim()
    ):
        # Squares and roots have kernels of their own.
        return torch.pow(base, exponent.item()).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
def modulo(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, with `fmod` of the dividend."""
    return torch.fmod(left, right) if node.integer("fmod", 0) else torch.remainder(left, right)


@operator("Neg")
def negate(_: Node, x: Tensor) -> Tensor:
    """-x."""
    return -x


@operator("Abs")
def absolute(_: Node, x: Tensor) -> Tensor:
    """|x|."""
    return torch.abs(x)


@operator("Sign")
def sign(_: Node, x: Tensor) -> Tensor:
    """-1, 0 or 1; its gradient is 0."""
    return torch.sign(x)


@operator("Reciprocal")
def reciprocal(_: Node, x: Tensor) -> Tensor:
    """1 / x."""
    return torch.reciprocal(x)


@operator("Sqrt")
def square_root(_: Node, x: Tensor) -> Tensor:
    """Square root."""
    return torch.sqrt(x)


@operator("Exp")
def exponential(_: Node, x: Tensor) -> Tensor:
    """The exponential function."""
    return torch.exp(x)


@operator("Log")
def logarithm(_: Node, x: Tensor) -> Tensor:
    """Natural logarithm."""
    return torch.log(x)


@operator("Erf")
def error_function(_: Node, x: Tensor) -> Tensor:
    """Gauss's error function."""
    return torch.erf(x)


@operator("Floor")
def floor(_: Node, x: Tensor) -> Tensor:
    """Largest whole number that is not above; its gradient is 0."""
    return torch.floor(x)


@operator("Ceil")
def ceiling(_: Node, x: Tensor) -> Tensor:
    """Smallest whole number that is not below; its gradient is 0."""
    return torch.ceil(x)


@operator("Round")
def round_to_even(_: Node, x: Tensor) -> Tensor:
    """Nearest whole number, halves to the even one; its gradient is 0."""
    return torch.round(x)


@operator("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")
def trigonometry(node: Node, x: Tensor) -> Tensor:
    """Trigonometric and hyperbolic functions and their inverses."""
    function: Callable[[Tensor], Tensor] = getattr(torch, node.op_type.lower())
    return function(x)


@operator("Sum")
def total(_: Node, *inputs: Tensor) -> Tensor:
    """Sum of any number of tensors."""
    return reduce(torch.add, inputs)


@operator("Mean")
def mean(_: Node, *inputs: Tensor) -> Tensor:
    """Mean of any number of tensors."""
    return reduce(torch.add, inputs) / len(inputs)


@operator("Max")
def maximum(_: Node, *inputs: Tensor) -> Tensor:
    """Largest of any number of tensors; equals share the gradient."""
    return reduce(torch.maximum, inputs)


@operator("Min")
def minimum(_: Node, *inputs: Tensor) -> Tensor:
    """Smallest of any number of tensors; equals share the gradient."""
    return reduce(torch.minimum, inputs)


@operator("Clip", host=(1, 2))
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Cut to a range; before operator set 11 attributes stated it."""
    kind = float if x.is_floating_point() else int
    bounds = {
        name: kind(node.number(name, 0)) if tensor is None else kind(tensor.item())
        for name, tensor in (("min", low), ("max", high))
        if tensor is not None or name in node.attributes
    }
    return torch.clamp(x, **bounds) if bounds else x


@operator("BitwiseAnd")
def bitwise_and(_: Node, left: Tensor, right: Tensor) -> Tensor:
    """Bits that both have."""
    return left & right


@operator("BitwiseOr")
def bitwise_or(_: Node, left: Tensor, right: Tensor) -> Tensor:
    """Bits that one of them has."""
    return left | right


@operator("BitwiseXor")
def bitwise_xor(_: Node, left: Tensor, right: Tensor) -> Tensor:
    """Bits that one of them alone has."""
    return left ^ right


@operator("BitwiseNot")
def bitwise_not(node: Node, x: Tensor) -> Tensor:
    """Every bit the other way round."""
    return wrapped(~x, node.input_types[0])


@operator("BitShift")
def bit_shift(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Bits moved to the left or right; what leaves the type is lost."""
    if node.text("direction", "LEFT") == "LEFT":
        return wrapped(left << right, node.input_types[0])
    return left >> right
