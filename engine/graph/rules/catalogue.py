"""What each operator does to labels: all rules, by domain and operator; one file per family."""

from engine.graph.rules import (
    attention,
    contraction,
    convolution,
    elementwise,
    normalisation,
    quantized,
    recurrent,
    reduction,
    reshaping,
    selection,
)
from engine.graph.rules.registry import Rule

RULES: dict[tuple[str, str], Rule] = {
    **reshaping.RULES,
    **selection.RULES,
    **elementwise.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **recurrent.RULES,
    **attention.RULES,
    **quantized.RULES,
}
