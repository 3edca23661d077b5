"""What was measured is judged by other gates as a job would have judged it, and work is named by what gates mean for it."""

import pytest

from engine.gate import Gate
from engine.measure.acceptance import losses
from engine.measure.gates import Costs, judge
from engine.measure.rejudge import rejudged, work_of_gates
from engine.passes import MixedPrecision, QuantizeStatic, QuantizeWeights, Simplify
from engine.report.values import Change, Interval, Quality, StepReport, Verdict
from tests.engine.report.test_files import REPORT


def gate(metric, rule, value, **more):
    return Gate(metric=metric, rule=rule, value=value, **more)


@pytest.mark.parametrize(("limit", "outcome"), [(1.0, "pass"), (0.01, "fail")])
def test_sizes_are_judged_anew(limit, outcome):
    found = rejudged(REPORT, [gate("size_bytes", "max_ratio", limit)])
    assert (found.verdict.outcome, found.size) == (outcome, REPORT.size)
    assert len(found.verdict.gates) == 1


def test_what_was_not_kept_is_measured_again():
    assert rejudged(REPORT, [gate("latency_decode", "max", 5.0)]) is None
    assert rejudged(REPORT.model_copy(update={"kind": "search"}), []) is None
    assert rejudged(REPORT, [gate("top1", "max_drop", 0.01)]).verdict.outcome == "inconclusive"


def test_limits_do_not_name_the_work_unless_a_pass_works_towards_them():
    plain, aiming = (Simplify(), QuantizeStatic()), (Simplify(), MixedPrecision())
    first = [gate("size_bytes", "max_ratio", 0.5), gate("top1", "max_drop", 0.01)]
    other_cost = [gate("size_bytes", "max", 1e6), gate("top1", "max_drop", 0.01)]
    other_quality = [gate("size_bytes", "max_ratio", 0.5), gate("top1", "max_drop", 0.02)]
    for passes in (plain, aiming):
        assert work_of_gates(other_cost, passes) == work_of_gates(first, passes)
        for other in (
            [gate("latency_p50", "max_ratio", 0.5), first[1]],
            first[:1],
            [first[0], gate("f1", "max_drop", 0.01)],
        ):
            assert work_of_gates(other, passes) != work_of_gates(first, passes)
    assert work_of_gates(other_quality, plain) == work_of_gates(first, plain)
    assert work_of_gates(other_quality, aiming) != work_of_gates(first, aiming)
    p50, p99 = gate("latency_p50", "max", 1), gate("latency_p99", "max_ratio", 0.9)
    assert work_of_gates([p50], plain) == work_of_gates([p99], plain)
    assert [QuantizeWeights(accuracy=how).reads_gates for how in ("auto", "int8")] == [True, False]


LOSS = Quality(
    metric="top1", original=0.9, compressed=0.87, difference=-0.03, interval=Interval(low=-0.035, high=-0.025),
    standard_error=0.003, samples=1000,
)  # fmt: skip


def measured(limit, *, lossless=False):
    """Give the report of a job with one step that loses 3 points, kept or refused by a limit."""
    quality, gates = (LOSS,), [gate("top1", "max_drop", limit)]
    refusal = next(losses(quality, gates), None)
    change = Change(summary="made smaller", lossless=lossless)
    step = StepReport(
        index=0, type="x", parameters={}, status="refused" if refusal else "applied", refusal=refusal, change=change,
        quality=quality, seconds=1,
    )  # fmt: skip
    report = REPORT.model_copy(update={"steps": (step,), "quality": () if refusal else quality})
    verdict = Verdict.of([judge(each, report.quality, Costs(size=report.size)) for each in gates])
    return report.model_copy(update={"verdict": verdict})


def test_other_limits_on_quality_are_held_against_it_where_every_step_would_be_decided_alike():
    kept = measured(0.05)
    assert kept.verdict.outcome == "pass"
    looser = rejudged(kept, [gate("top1", "max_drop", 0.1)])
    assert (looser.verdict.outcome, looser.verdict.gates[0].gate.value) == ("pass", 0.1)
    # It would have been refused, so another network would have come of it.
    assert rejudged(kept, [gate("top1", "max_drop", 0.01)]) is None
    assert rejudged(kept, [gate("top1", "max_drop", 0.01)], exact=True).verdict.outcome == "fail"


def test_a_step_without_loss_is_not_asked_for_what_the_original_does_not_keep():
    kept = measured(0.05, lossless=True)
    assert rejudged(kept, [gate("top1", "min", 0.95)]).verdict.outcome == "fail"
    assert rejudged(kept, [gate("top1", "max_drop", 0.01)]) is None


def test_a_step_that_stays_refused_says_so_of_the_limit_that_holds_now():
    refused = measured(0.01)
    tighter = rejudged(refused, [gate("top1", "max_drop", 0.005)])
    assert (tighter.steps[0].status, tighter.steps[0].refusal.code) == ("refused", "too_lossy")
    assert tighter.steps[0].refusal.reason != refused.steps[0].refusal.reason
    assert rejudged(refused, [gate("top1", "max_drop", 0.05)]) is None
