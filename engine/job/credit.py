"""Loss on credit: a step may lose more than is allowed where a later one teaches; what that does not win back is taken back."""

from collections.abc import Sequence

from engine.contract import Pass
from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.measure.acceptance import losses
from engine.report.values import Credit, Refusal, StepReport


def lends(passes: Sequence[Pass], index: int) -> bool:
    """Say whether a step after this one teaches the network, and so may win back what this one loses."""
    return any(step.learns for step in passes[index + 1 :])


def not_on_quality(gates: Sequence[Gate]) -> list[Gate]:
    """Give the gates that a step on credit is held to at once: what it gains nobody makes up for later."""
    return [gate for gate in gates if gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS)]


def settle(reports: Sequence[StepReport], passes: Sequence[Pass], gates: Sequence[Gate]) -> list[StepReport]:
    """Give the reports of the steps so far with what the last one means for those that lost on credit.

    After a step that teaches, they have won it back where the network as it is loses no more than is allowed. Where it does, and
    no later step teaches, all that was done since the first of them is taken back.
    """
    found, last = list(reports), len(reports) - 1
    open_ones = [each.index for each in found if _is_open(each)]
    if not open_ones or not passes[last].learns:
        return found
    quality = next(each.quality for each in reversed(found) if each.status == "applied")
    loss = next(losses(quality, gates), None)
    if loss is None:
        for index in open_ones:
            found[index] = _won_back(found[index])
    elif not lends(passes, last):
        for each in [each for each in found[open_ones[0] :] if each.status == "applied"]:
            found[each.index] = _taken_back(each, loss)
    return found


def _is_open(report: StepReport) -> bool:
    return report.status == "applied" and report.credit is not None and not report.credit.won_back


def _won_back(report: StepReport) -> StepReport:
    assert report.credit is not None
    return report.model_copy(update={"credit": Credit(reason=report.credit.reason, won_back=True)})


def _taken_back(report: StepReport, loss: Refusal) -> StepReport:
    refusal = Refusal(
        code="too_lossy",
        reason=f"Taken back with the steps around it, for training has not won back what they lost: {loss.reason}",
        hint=loss.hint or "Ask for less, or give the training more samples or more seconds.",
    )
    return report.model_copy(update={"status": "refused", "refusal": refusal})
