"""Other gates held against what was measured already: where they ask for the same work, it is judged anew and not done again."""

from collections.abc import Sequence
from typing import Any

from engine.gate import FIDELITY_METRICS, TASK_METRICS, Gate
from engine.measure.gates import Costs, judge
from engine.report.values import GateResult, Report, Verdict


def work_of_gates(gates: Sequence[Gate]) -> dict[str, Any]:
    """Name what gates mean for the work: limits on quality decide about steps; of costs only which ones are asked for does."""
    costs = {gate.metric.partition("_")[0] for gate in gates if gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS)}
    on_quality = [gate for gate in gates if gate.metric in (*TASK_METRICS, *FIDELITY_METRICS)]
    return {"quality": [gate.model_dump(mode="json") for gate in on_quality], "costs": sorted(costs)}


def rejudged(report: Report, gates: Sequence[Gate]) -> Report | None:
    """Give a compression's report with the verdict of other gates; None where they are about what the report does not keep."""
    if report.kind != "compress" or any(gate.metric == "latency_decode" for gate in gates):
        return None
    counts = (report.original.parameters, report.compressed.parameters)
    costs = Costs(size=report.size, latency=report.latency, memory=report.memory, parameters=counts)
    results = [judge(gate, report.quality, costs) for gate in gates]
    if report.parts is not None and report.parts.select_is_judge:
        results = [chosen_on(each) for each in results]
    return report.model_copy(update={"verdict": Verdict.of(results)})


def chosen_on(result: GateResult) -> GateResult:
    """Say of a gate on quality that the samples that judge are those that steps were chosen on."""
    if result.gate.metric not in (*TASK_METRICS, *FIDELITY_METRICS):
        return result
    return result.model_copy(update={"reason": f"{result.reason}; steps were chosen on the same samples"})
