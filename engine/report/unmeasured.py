"""Targets of a profile that nobody could measure, told in its report with the reason."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.gate import ProfileGate
from engine.report.profile_markdown import summarise_profile
from engine.report.values import GateResult, ProfileReport, Refusal, TargetProfile, Verdict
from engine.target import Target


def unmeasured(
    targets: Sequence[Target],
    gates: Sequence[ProfileGate],
    indices: Sequence[int],
    problem: Mapping[str, Any],
    beside: ProfileReport,
) -> ProfileReport:
    """Give the part of a job's report about targets whose work has failed; `beside` is the part of one that was measured.

    `problem` has the shape of `EngineError.problem()`. Gates fail where the network is to blame, and are inconclusive where
    the service is: no worker was there, the machine was lost.
    """
    refusal = Refusal(
        code="not_measured",
        reason=problem["message"],
        node=problem.get("node"),
        hint=problem.get("hint"),
        details={"code": problem["code"]},
    )
    missing = tuple(
        TargetProfile(index=index, target=targets[index], measured=None, refusal=refusal, seconds=0.0)
        for index in indices
    )
    results = [result for target in missing for result in _gates(gates, target, blamed=problem["class"] == "user")]
    return beside.model_copy(
        update={
            "summary": summarise_profile(missing),
            "targets": missing,
            "verdict": Verdict.of(results),
            "samples": 0,
            "seconds": 0.0,
            "warnings": (),
        }
    )


def _gates(gates: Sequence[ProfileGate], profile: TargetProfile, *, blamed: bool) -> list[GateResult]:
    assert profile.refusal is not None
    return [
        GateResult(
            gate=gate,
            target=profile.index,
            measured=None,
            bound=None,
            outcome="fail" if blamed else "inconclusive",
            reason=f"{profile.target.provider} was not measured: {profile.refusal.reason}",
        )
        for gate in gates
        if gate.provider in {None, profile.target.provider}
    ]
