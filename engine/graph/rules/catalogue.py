"""What each operator does to labels: all rules, by domain and operator; one file per family."""

from engine.graph.rules import (
    attention,
    contraction,
    convolution,
    elementwise,
    movement,
    normalisation,
    quantised,
    recurrent,
    reduction,
)
from engine.graph.rules.registry import Rule

RULES: dict[tuple[str, str], Rule] = {
    **movement.RULES,
    **elementwise.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **recurrent.RULES,
    **attention.RULES,
    **quantised.RULES,
}
