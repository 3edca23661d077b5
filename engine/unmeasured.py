"""Targets of a profile that nobody could measure, told in its report with the reason."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.profile_markdown import summarise_profile
from engine.report import GateResult, ProfileReport, Refusal, TargetProfile, Verdict
from engine.spec import Profile


def unmeasured(
    spec: Profile, indices: Sequence[int], problem: Mapping[str, Any], beside: ProfileReport
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
    targets = tuple(
        TargetProfile(index=index, target=spec.targets[index], measured=None, refusal=refusal, seconds=0.0)
        for index in indices
    )
    gates = [result for target in targets for result in _gates(spec, target, blamed=problem["class"] == "user")]
    return beside.model_copy(
        update={
            "summary": summarise_profile(targets),
            "targets": targets,
            "verdict": Verdict.of(gates),
            "samples": 0,
            "seconds": 0.0,
            "warnings": (),
        }
    )


def _gates(spec: Profile, profile: TargetProfile, *, blamed: bool) -> list[GateResult]:
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
        for gate in spec.gates
        if gate.provider in {None, profile.target.provider}
    ]
