"""Which steps of a job the result rests on for what it gains, and which were only made for steps after them."""

from collections.abc import Sequence
from itertools import takewhile

from engine.report.values import Refusal, StepReport


def unbuilt_on(steps: Sequence[StepReport]) -> list[StepReport]:
    """Give the steps without loss that were kept after the last other step that was, in their order."""
    kept = [step for step in reversed(steps) if step.status == "applied"]
    return list(takewhile(lambda step: step.change is not None and step.change.lossless, kept))[::-1]


def taken_back(step: StepReport, refusal: Refusal, *, last: bool) -> StepReport:
    """Give the report of a step that is refused after all; `last`: no step came after it."""
    told = "" if last else " It had been kept for the steps after it, none of which was kept."
    refused = refusal.model_copy(update={"reason": f"{refusal.reason}{told}"})
    return step.model_copy(update={"status": "refused", "refusal": refused})
