"""The table of operators that the twin can run and differentiate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.train.framework import Tensor
from engine.train.twin.node import Node

# Called with the node and its inputs: an omitted optional input is None, trailing omitted ones are not passed.
Function = Callable[..., "Tensor | tuple[Tensor, ...]"]
# Gives the reason why a node of this operator cannot be run, None where it can.
Refusal = Callable[[Node], "str | None"]


@dataclass(frozen=True)
class Operator:
    """One operator. `host` lists the inputs that it reads as numbers (shapes, axes, pads): they stay in the CPU's memory."""

    function: Function
    host: frozenset[int] = frozenset()
    refuses: Refusal | None = None

    def __call__(self, node: Node, *inputs: Tensor | None) -> Any:
        """Run it."""
        return self.function(node, *inputs)


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str, domain: str = "", host: Iterable[int] = (), refuses: Refusal | None = None
) -> Callable[[Function], Function]:
    """Register a function for the operators of these names.

    It gives one tensor, or a tuple where the operator has several outputs; a tuple may be longer than what the node asks for.
    """

    def register(function: Function) -> Function:
        for name in names:
            if (domain, name) in OPERATORS:
                raise ValueError(f"Two functions are registered for {domain or 'ai.onnx'}.{name}")
            OPERATORS[domain, name] = Operator(function, frozenset(host), refuses)
        return function

    return register


def reason_against(node: Node) -> str | None:
    """Say why a node cannot be trained through, None where it can."""
    found = OPERATORS.get((node.domain, node.op_type))
    if found is None:
        return "the operator is not in the table"
    return None if found.refuses is None else found.refuses(node)
