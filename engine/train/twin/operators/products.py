"""Products of matrices."""

from engine.train.framework import Tensor, functional, torch
from engine.train.twin.node import Node
from engine.train.twin.operators.named_activations import activation
from engine.train.twin.table import operator


@operator("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, or stacks of them, as numpy does."""
    del node
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Give alpha * A @ B + beta * C, both matrices turned where asked."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    if node.integer("transA", 0):
        a = a.mT
    if not node.integer("transB", 0):
        b = b.mT
    if c is not None and c.dim() == 1 and alpha == beta == 1.0 and len(c) == len(b) and c.is_floating_point():
        return functional.linear(a, b, c)
    product = _scaled(torch.matmul(a, b.mT), alpha)
    return product if c is None else product + _scaled(c, beta)


@operator("FusedGemm", domain="com.microsoft")
def fused_gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Give the activation of a Gemm."""
    name = node.text("activation", "")
    product = gemm(node, a, b, c)
    if not name:
        return product
    alpha, beta = (_number(node, each) for each in ("activation_alpha", "activation_beta"))
    return activation(name, alpha, beta)(product)


@operator("FusedMatMul", domain="com.microsoft")
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Give alpha * A @ B, both turned where asked; `transBatchA` moves the first axis to before the last."""
    a = _turned(a, batch=node.integer("transBatchA", 0), matrix=node.integer("transA", 0))
    b = _turned(b, batch=node.integer("transBatchB", 0), matrix=node.integer("transB", 0))
    return _scaled(torch.matmul(a, b), node.number("alpha", 1.0))


@operator("Einsum")
def einsum(node: Node, *operands: Tensor) -> Tensor:
    """Sum products over the named axes of the equation."""
    return torch.einsum(node.text("equation", ""), *operands)


@operator("Det")
def determinant(node: Node, x: Tensor) -> Tensor:
    """Give the determinants of square matrices."""
    del node
    return torch.linalg.det(x)


def _turned(x: Tensor, *, batch: int, matrix: int) -> Tensor:
    if batch and x.dim() > 2:
        x = x.movedim(0, -2)
    return x.mT if matrix and x.dim() > 1 else x


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    return (x * factor).to(x.dtype)


def _number(node: Node, name: str) -> float | None:
    return node.number(name, 0.0) if name in node.attributes else None
