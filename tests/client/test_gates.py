"""Limits as people type them, as gates that the engine takes."""

import pytest

from engine.gate import Gate
from onnxpress import gates, metrics
from onnxpress.errors import UsageError


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("top1 max_drop 0.01", {"metric": "top1", "rule": "max_drop", "value": 0.01}),
        ("top1 max_drop 1%", {"metric": "top1", "rule": "max_drop", "value": 0.01}),
        (
            "latency_p95 max_ratio 80% confidence=0.9 warn",
            {"metric": "latency_p95", "rule": "max_ratio", "value": 0.8, "confidence": 0.9, "level": "warn"},
        ),
        ("sqnr_db min 30", {"metric": "sqnr_db", "rule": "min", "value": 30.0}),
        ("size_bytes max 2MB", {"metric": "size_bytes", "rule": "max", "value": 2e6}),
        ("peak_memory max 100MiB", {"metric": "peak_memory", "rule": "max", "value": 100 * 2**20}),
        ("size_bytes max 500", {"metric": "size_bytes", "rule": "max", "value": 500}),
        ("latency_p99 max 0.005s", {"metric": "latency_p99", "rule": "max", "value": 5.0}),
    ],
)
def test_gates_as_people_type_them(text, gate):
    assert gates.parse_gate(text) == gate
    Gate.model_validate(gate)


@pytest.mark.parametrize("text", ["", "top1", "top1 drop 0.01", "top1 max_drop little", "top1 max_drop 1% hard"])
def test_a_gate_that_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError):
        gates.parse_gate(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("top1 max_drop 1", "allows a loss of 100 points.*did you mean 1%"),
        ("top1@logits max_drop 2", "did you mean 2%"),
        ("top1 max_drop 150%", "which nothing can exceed$"),
        ("top1_agreement min 99", "no network reaches; did you mean 99%"),
    ],
)
def test_a_limit_that_nothing_or_everything_holds_is_refused_with_what_was_meant(text, words):
    with pytest.raises(UsageError, match=words):
        gates.parse_gate(text)


def test_a_limit_in_a_unit_of_its_own_may_be_any_number():
    assert gates.parse_gate("perplexity max_drop 2")["value"] == 2
    assert gates.parse_gate("sqnr_db min 30")["value"] == 30


def test_options_stand_for_gates_that_the_engine_takes():
    found = gates.cost_limits(min_speedup="4", max_size="2MB", max_memory="80%", max_p99="5ms")
    assert found == [
        {"metric": "latency_p50", "rule": "max_ratio", "value": 0.25},
        {"metric": "size_bytes", "rule": "max", "value": 2e6},
        {"metric": "peak_memory", "rule": "max_ratio", "value": 0.8},
        {"metric": "latency_p99", "rule": "max", "value": 5.0},
    ]
    for gate in found:
        Gate.model_validate(gate)
    assert gates.cost_limits() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_size": "2"}, "means 2 bytes; say the unit, such as 2MB"),
        ({"max_size": "0KB"}, "no network holds"),
        ({"max_memory": "0%"}, "no network holds"),
        ({"max_p99": "0ms"}, "no network holds"),
        ({"min_speedup": "50%"}, "how many times as fast"),
    ],
)
def test_a_limit_that_no_network_holds_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        gates.cost_limits(**options)


def test_what_is_known_of_metrics_here_is_what_the_engine_has():
    from engine.gate import COST_METRICS, FIDELITY_METRICS, KIND_METRICS, TASK_METRICS
    from engine.report.wording import SHARES

    assert set(COST_METRICS) == gates.COSTS
    assert metrics.SHARES == SHARES <= {*TASK_METRICS, *FIDELITY_METRICS}
    # A state's numbers have no share that says how much is left.
    assert metrics.FIDELITY_OF_KIND.keys() == KIND_METRICS.keys() - {"state"}
    assert all(metric in KIND_METRICS[kind] for kind, metric in metrics.FIDELITY_OF_KIND.items())
