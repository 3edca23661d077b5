"""The shape of a rule and how a family lists its operators."""

from collections.abc import Callable
from functools import wraps

import onnx_ir as ir

from engine.graph.execution import Execution

Rule = Callable[[Execution, ir.Node], None]
Rules = dict[tuple[str, str], Rule]

STANDARD = ""
CONTRIB = "com.microsoft"


def follows(*places: int) -> Callable[[Rule], Rule]:
    """Say by which inputs a rule follows labels; channels that come in by another one stay."""

    def decorate(rule: Rule) -> Rule:
        @wraps(rule)
        def with_others_kept(run: Execution, node: ir.Node) -> None:
            for index, value in enumerate(node.inputs):
                if index not in places:
                    run.freeze(run.label(value), node, "reads them where they are not followed")
            rule(run, node)

        return with_others_kept

    return decorate


def keep_if_read(run: Execution, node: ir.Node, index: int, first: int, reason: str) -> None:
    """Keep the channels of input `index` where outputs from `first` on, to which labels do not pass, are read."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[first:]):
        run.freeze(run.label(node.inputs[index]), node, reason)


def listed(rule: Rule, *names: str, domain: str = STANDARD) -> Rules:
    """Register one rule for several operators of a domain."""
    return {(domain, name): rule for name in names}
