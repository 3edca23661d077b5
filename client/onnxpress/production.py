"""The result beside what it is to replace: the limits that are usual, and the job that measures both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxpress.documents import Dataset
from onnxpress.metrics import SHARES

# By how much a cost may exceed that of the network in production: two measurements of one network differ by less.
USUAL_RATIO = 1.05
USUAL_DROP = 0.01
_COST_OF_GOAL = {"latency": "latency_p50", "size": "size_bytes", "memory": "peak_memory", "macs": "latency_p50"}


@dataclass(frozen=True)
class Incumbent:
    """The network that a result is compared with: as it was named, and by its id."""

    named: str
    model: str


def usual_gates(spec: Mapping[str, Any], drop: float | None, judging: Dataset | None) -> list[dict[str, Any]]:
    """Give the limits beside the incumbent where none were typed: not clearly worse in what was asked for.

    Quality is compared where labels tell it; agreement with the incumbent says nothing, for both depart from the original.
    """
    goal = (spec.get("goal") or {}).get("minimise")
    costs = [_COST_OF_GOAL[goal]] if goal in _COST_OF_GOAL else ["latency_p50", "size_bytes"]
    gates: list[dict[str, Any]] = [{"metric": cost, "rule": "max_ratio", "value": USUAL_RATIO} for cost in costs]
    inspection = (judging.inspection if judging else None) or {}
    metric = inspection.get("metric")
    if metric in SHARES and inspection.get("labelled"):
        gates.append({"metric": metric, "rule": "max_drop", "value": USUAL_DROP if drop is None else drop})
    return gates


def comparison_spec(job: Mapping[str, Any], incumbent: Incumbent, gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the profile that measures a job's result beside the incumbent, on the job's own target and data."""
    spec = job.get("spec") or {}
    taken = {name: job[name] for name in ("dataset", "judge", "labels", "priority") if job.get(name)}
    taken |= {"outputs": spec["outputs"]} if spec.get("outputs") else {}
    return {
        "kind": "profile",
        "baseline": incumbent.model,
        "targets": [spec.get("target") or {"provider": "cpu"}],
        "gates": [dict(gate) for gate in gates],
        **taken,
    }
