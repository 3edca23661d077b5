"""The shape of a rule and how a family lists its operators."""

from collections.abc import Callable

import onnx_ir as ir

from engine.graph.execution import Execution

Rule = Callable[[Execution, ir.Node], None]
Rules = dict[tuple[str, str], Rule]

STANDARD = ""
CONTRIB = "com.microsoft"


def listed(rule: Rule, *names: str, domain: str = STANDARD) -> Rules:
    """Register one rule for several operators of a domain."""
    return {(domain, name): rule for name in names}
