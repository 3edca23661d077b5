"""What was measured is judged by other gates as a job would have judged it, and work is named by what gates mean for it."""

import pytest

from engine.gate import Gate
from engine.measure.rejudge import rejudged, work_of_gates
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


def test_limits_of_costs_do_not_name_the_work_but_those_of_quality_do():
    first = work_of_gates([gate("size_bytes", "max_ratio", 0.5), gate("top1", "max_drop", 0.01)])
    assert work_of_gates([gate("size_bytes", "max", 1e6), gate("top1", "max_drop", 0.01)]) == first
    for other in (
        [gate("size_bytes", "max_ratio", 0.5), gate("top1", "max_drop", 0.02)],
        [gate("latency_p50", "max_ratio", 0.5), gate("top1", "max_drop", 0.01)],
        [gate("size_bytes", "max_ratio", 0.5)],
    ):
        assert work_of_gates(other) != first
    assert work_of_gates([gate("latency_p50", "max", 1)]) == work_of_gates([gate("latency_p99", "max_ratio", 0.9)])
