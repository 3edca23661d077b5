"""Other gates held against what was measured already: where they ask for the same work, it is judged anew and not done again."""

from collections.abc import Sequence
from typing import Any

from engine.contract import Pass
from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.measure.acceptance import breaks_quality, losses
from engine.measure.gates import Costs, judge
from engine.report.values import Credit, GateResult, Report, StepReport, Verdict


def work_of_gates(gates: Sequence[Gate], passes: Sequence[Pass]) -> dict[str, Any]:
    """Name what gates mean for the work: which figures they are about, and their limits on quality where a pass works towards them.

    That steps are kept or not by limits is not in the name: whether others decide the same is seen from the report.
    """
    costs = {gate.metric.partition("_")[0] for gate in gates if not _is_on_quality(gate)}
    on_quality = [gate for gate in gates if _is_on_quality(gate)]
    asked: list[Any] = sorted({(gate.metric, gate.output or "") for gate in on_quality})
    if any(step.reads_gates for step in passes):
        asked = [gate.model_dump(mode="json") for gate in on_quality]
    return {"quality": asked, "costs": sorted(costs)}


def rejudged(report: Report, gates: Sequence[Gate], *, exact: bool = False) -> Report | None:
    """Give a compression's report with the verdict of other gates.

    None where they are about what the report does not keep, and where they would have kept or refused another step; of an
    `exact` recipe every step is kept.
    """
    if report.kind != "compress" or any(gate.metric == "latency_decode" for gate in gates):
        return None
    before = [result.gate for result in report.verdict.gates if isinstance(result.gate, Gate)]
    is_lent = any(step.credit is not None for step in report.steps)
    if not exact and not all(_decides_alike(step, before, gates, is_lent=is_lent) for step in report.steps):
        return None
    counts = (report.original.parameters, report.compressed.parameters)
    costs = Costs(size=report.size, latency=report.latency, memory=report.memory, parameters=counts)
    results = [judge(gate, report.quality, costs) for gate in gates]
    if report.parts is not None and report.parts.select_is_judge:
        results = [chosen_on(each) for each in results]
    steps = tuple(_told_anew(step, before, gates) for step in report.steps)
    return report.model_copy(update={"verdict": Verdict.of(results), "steps": steps})


def chosen_on(result: GateResult) -> GateResult:
    """Say of a gate on quality that the samples that judge are those that steps were chosen on."""
    if not _is_on_quality(result.gate):
        return result
    return result.model_copy(update={"reason": f"{result.reason}; steps were chosen on the same samples"})


def _is_on_quality(gate: Gate) -> bool:
    return gate.metric in {*TASK_METRICS, *FIDELITY_METRICS}


def _decides_alike(step: StepReport, before: Sequence[Gate], gates: Sequence[Gate], *, is_lent: bool) -> bool:
    """Say whether these limits speak against a step exactly where those of its job did; `is_lent`: a step had lost on credit."""
    if not step.quality:
        return True
    if step.change is not None and step.change.lossless and not is_lent:
        was, now = (breaks_quality(step.quality, each) for each in (before, gates))
    else:
        was, now = (next(losses(step.quality, each), None) is not None for each in (before, gates))
    return was is now


def _told_anew(step: StepReport, before: Sequence[Gate], gates: Sequence[Gate]) -> StepReport:
    """Have a step that loses too much say so of the limits that hold now."""
    was, now = (next(losses(step.quality, each), None) for each in (before, gates))
    if was is None or now is None:
        return step
    if step.refusal == was:
        return step.model_copy(update={"refusal": now})
    if step.credit is not None and step.credit.reason == was.reason:
        return step.model_copy(update={"credit": Credit(reason=now.reason, won_back=step.credit.won_back)})
    return step
