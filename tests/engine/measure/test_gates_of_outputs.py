"""Gates and floors where a network has several outputs."""

import pytest
from pydantic import ValidationError

from engine.gate import Gate
from engine.measure.acceptance import by_output, losses, noise_share
from engine.measure.gates import Costs, judge
from engine.report.values import Interval, Quality


def fidelity(metric, value, output, kind, weight=1.0, half=0.0):
    return Quality(
        metric=metric, original=None, compressed=value, difference=None, standard_error=half / 2, samples=100,
        interval=Interval(low=value - half, high=value + half), output=output, kind=kind, weight=weight,
    )  # fmt: skip


def top1(drop, output="logits"):
    return Quality(
        metric="top1", original=0.9, compressed=0.9 - drop, difference=-drop, standard_error=0.001, samples=1000,
        interval=Interval(low=-drop - 0.001, high=-drop + 0.001), output=output, kind="classes",
    )  # fmt: skip


SQNR = [
    fidelity("sqnr_db", 40, "logits", "classes"),
    fidelity("top1_agreement", 1.0, "logits", "classes"),
    fidelity("sqnr_db", 18, "age", "values"),
    fidelity("r2", 0.99, "age", "values"),
    fidelity("sqnr_db", 12, "hn", "state", weight=0.1),
]


def gate(metric, rule="min", value=15.0, **more):
    return Gate.model_validate({"metric": metric, "rule": rule, "value": value, **more})


def test_a_gate_names_an_output_in_two_ways_and_comes_back_the_same():
    short, long = gate("top1@logits", "max_drop", 0.01), gate("top1", "max_drop", 0.01, output="logits")
    assert short == long == Gate.model_validate_json(short.model_dump_json())
    assert (short.metric, short.output, short.label) == ("top1", "logits", "top1@logits")
    # A name may hold what separates it.
    assert gate("sqnr_db@a@b").output == "a@b"
    assert gate("sqnr_db").label == "sqnr_db"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"metric": "top1@a", "output": "b"}, "names two outputs"),
        ({"metric": "size_bytes@a", "rule": "max"}, "whole network"),
        ({"metric": "top1@", "rule": "min"}, "at least 1 character"),
        ({"metric": "tops@a"}, "Input should be"),
    ],
)
def test_a_gate_on_an_output_that_cannot_be_is_refused(body, said):
    with pytest.raises(ValidationError, match=said):
        Gate.model_validate({"rule": "min", "value": 0.5, **body})


@pytest.mark.parametrize(
    ("metric", "value", "outcome", "said"),
    [
        ("sqnr_db", 15, "pass", "output `age`, the worst of 2 outputs"),
        ("sqnr_db", 20, "fail", "output `age`, the worst of 2 outputs"),
        ("sqnr_db@logits", 20, "pass", "output `logits`"),
        ("sqnr_db@age", 20, "fail", "output `age` is 18"),
        # A state counts where it is named.
        ("sqnr_db@hn", 15, "fail", "output `hn` is 12"),
        ("r2", 0.9, "pass", "output `age`"),
        ("r2@logits", 0.9, "inconclusive", "was not measured for this output, only for `age`"),
        ("mask_iou", 0.9, "inconclusive", "was not measured for this network"),
    ],
)
def test_a_gate_without_an_output_is_held_by_the_worst(metric, value, outcome, said):
    result = judge(gate(metric, value=value), SQNR, Costs())
    assert result.outcome == outcome
    assert said in result.reason


def test_of_one_output_nothing_more_is_said():
    result = judge(gate("sqnr_db", value=15), SQNR[:2], Costs())
    assert result.reason == "sqnr_db is 40 dB, allowed is at least 15 dB"


def test_a_state_counts_where_nothing_else_has_the_metric():
    assert judge(gate("sqnr_db"), SQNR[4:], Costs()).outcome == "fail"


def test_inconclusive_is_worse_than_pass_and_fail_worse_than_both():
    doubtful = fidelity("sqnr_db", 16, "b", "values", half=4)
    assert judge(gate("sqnr_db"), [SQNR[0], doubtful], Costs()).outcome == "inconclusive"
    assert judge(gate("sqnr_db"), [doubtful, fidelity("sqnr_db", 3, "c", "values")], Costs()).outcome == "fail"


@pytest.mark.parametrize(
    ("quality", "gates", "refused"),
    [
        (SQNR, (), []),
        ([*SQNR[:2], fidelity("sqnr_db", 9, "age", "values")], (), ["age"]),
        ([*SQNR[:2], fidelity("r2", 0.2, "age", "values")], (), ["age"]),
        ([*SQNR[:2], fidelity("sqnr_db", 9, "hn", "state")], (), ["hn"]),
        ([*SQNR[:2], fidelity("neighbours", 0.5, "vector", "embedding")], (), ["vector"]),
        ([*SQNR[:2], fidelity("box_f1", 0.5, "dets", "boxes")], (), ["dets"]),
        ([*SQNR[:2], fidelity("kl", 0.5, "next", "tokens")], (), ["next"]),
        # A gate on the labels' metric is about its own output: the other one keeps its floor.
        ([top1(0.0), fidelity("sqnr_db", 9, "age", "values")], (gate("top1", "max_drop", 0.01),), ["age"]),
        ([top1(0.02), fidelity("sqnr_db", 30, "age", "values")], (), ["logits"]),
        # Labels say more of their output than its own closeness.
        ([top1(0.0), fidelity("top1_agreement", 0.9, "logits", "classes")], (), []),
        # A gate that names an output replaces that output's floor alone.
        ([fidelity("sqnr_db", 9, "a", "values"), fidelity("sqnr_db", 9, "b", "values")], (gate("sqnr_db@a", value=5),), ["b"]),
        ([fidelity("sqnr_db", 9, "a", "values"), fidelity("sqnr_db", 9, "b", "values")], (gate("sqnr_db", value=5),), []),
    ],
)  # fmt: skip
def test_each_output_keeps_its_floor_unless_a_gate_is_about_it(quality, gates, refused):
    reasons = [refusal.reason for refusal in losses(quality, gates)]
    assert [reason.split("`")[1] for reason in reasons] == refused
    assert all(reason.endswith(".") for reason in reasons)


def test_the_sentence_names_the_output_its_kind_and_why():
    (refusal,) = losses([*SQNR[:2], fidelity("sqnr_db", 9, "age", "values")], ())
    assert refusal.reason == "Output `age` (values): the signal-to-noise ratio is 9.0 dB; at least 15.0 dB is required."
    assert "declare what the output is" in refusal.hint


def test_outputs_are_weighed_where_one_number_is_asked_for():
    assert list(by_output(SQNR)) == ["logits", "age", "hn"]
    even = [fidelity("sqnr_db", 20, "a", "values"), fidelity("sqnr_db", 10, "b", "values")]
    assert noise_share(even) == pytest.approx((0.01 + 0.1) / 2)
    light = [even[0], fidelity("sqnr_db", 10, "b", "state", weight=0.1)]
    assert noise_share(light) == pytest.approx((0.01 + 0.01) / 1.1)
    assert noise_share([fidelity("box_f1", 0.8, "dets", "boxes")]) == pytest.approx(0.2)
