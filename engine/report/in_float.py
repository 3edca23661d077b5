"""Why layers of a report's network are in float, as its steps said."""

from collections.abc import Iterable, Iterator

from engine.report.detail_parts import LeftAlone
from engine.report.quantization_details import (
    DynamicDetails,
    Float16Details,
    MixedDetails,
    StaticDetails,
    WeightsDetails,
)
from engine.report.values import StepReport

_QUANTIZERS = frozenset(
    {"quantize_static", "quantize_dynamic", "quantize_weights", "quantize_aware_train", "mixed_precision", "float16"}
)


def in_float_reasons(steps: Iterable[StepReport]) -> dict[str, str]:
    """Give by node the last reason that a step which was kept had to leave it in float."""
    return {left.node: left.reason for step in steps if step.status == "applied" for left in _left(step)}


def refused_to_quantize(steps: Iterable[StepReport]) -> tuple[str, ...]:
    """Name the passes that would have stored weights in fewer bits and were refused; none where one of them was kept."""
    asked = [step for step in steps if step.type in _QUANTIZERS]
    if any(step.status == "applied" for step in asked):
        return ()
    return tuple(dict.fromkeys(step.type for step in asked))


def _left(step: StepReport) -> Iterator[LeftAlone]:
    details = None if step.change is None else step.change.details
    for each in details.steps if isinstance(details, MixedDetails) else (details,):
        if isinstance(each, StaticDetails | DynamicDetails | WeightsDetails):
            yield from each.in_float
        elif isinstance(each, Float16Details):
            yield from each.in_float32
