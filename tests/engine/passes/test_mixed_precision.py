"""The mixed_precision pass: what it chooses among, that it keeps to what is allowed, and that it says so when nothing pays."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from engine.calibrate import observe
from engine.contract import Observe
from engine.gate import Gate
from engine.graph import io
from engine.measure.quality import Evaluator
from engine.passes.mixed_precision import MixedPrecision
from engine.quantize import effort, integer_types, static
from engine.quantize.regions import Times, choose
from engine.quantize.sensitivity import sensitivities
from engine.quantize.static_plan import make_plan
from engine.report.quantization_details import DynamicDetails, StaticDetails
from engine.report.values import Change, Refusal
from engine.runtime import sessions
from engine.target import Target

RANDOM = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _own_generator(monkeypatch):
    """Each test draws from a generator of its own, whatever ran before it."""
    monkeypatch.setattr(sys.modules[__name__], "RANDOM", np.random.default_rng(11))


def draw(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def convolutions(tools, *, close=False):
    """Three convolutions; the second sees one channel that is a thousand times larger than the others.

    Where it is `close`, no class is the likeliest one for all inputs, so that small differences move decisions.
    """
    wide = np.ones((1, 8, 1, 1), np.float32)
    wide[0, 0] = 1000
    nodes = [
        node("Conv", ["x", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Mul", ["r1", "wide"], "m"),
        node("Conv", ["m", "w2"], "c2", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["c2"], "s2"),
        node("Conv", ["s2", "w3"], "c3"),
        node("GlobalAveragePool", ["c3"], "p"),
        node("Flatten", ["p"], "y"),
    ]
    second = draw(8, 8, 3, 3) / 9
    second[:, 0] /= 1000
    third = draw(10, 8, 1, 1)
    if close:
        third -= third.mean(axis=1, keepdims=True)
    weights = {"w1": draw(8, 3, 3, 3), "wide": wide, "w2": second, "w3": third}
    return tools.build(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 10]}, weights)


def products(tools, width=64):
    nodes = [node("MatMul", ["x", "w1"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w2"], "y")]
    weights = {"w1": draw(width, 2 * width), "w2": draw(2 * width, 10)}
    return tools.build(nodes, {"x": ["n", width]}, {"y": ["n", 10]}, weights)


def context(tools, model, samples, tmp_path, race=None, gates=()):
    """Everything real but the clock: a race's ratios are what the test says."""
    evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), samples)
    return replace(
        tools.context(model, samples),
        evaluate=lambda candidate: evaluator.evaluate(sessions.session(io.to_bytes(candidate), Target())),
        observe=lambda network, requests: observe(network, requests, samples, Target(), scratch=tmp_path),
        race=race or (lambda models: [1.0] * len(models)),
        gates=gates,
    )


def apply(model, step, given):
    step.prepare(model)
    assert step.check(model) is None
    return step.apply(model, given.observe(model, step.observes(model)), given)


def ranges(model, given):
    names = [str(value.name) for value in make_plan(model).tensors]
    found = given.observe(model, [Observe(name) for name in names])
    return {request.tensor: result for request, result in found.items()}


def test_the_fastest_that_is_near_enough_wins(tools, tmp_path):
    model = products(tools)
    samples = tools.Feeds(x=draw(100, 64))
    before = tools.run(model, {"x": samples.arrays["x"][:8]})
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.5] * (len(models) - 1)])
    outcome = apply(model, MixedPrecision(candidates=("static", "dynamic"), max_drop=0.05), given)
    assert isinstance(outcome, Change)
    found = tools.run(model, {"x": samples.arrays["x"][:8]})
    assert tools.sqnr(before["y"], found["y"]) > 25
    front = outcome.details.front
    assert [each.chosen for each in front].count(True) == 1
    assert front[0].name == "float32"
    assert {"top1_agreement", "sqnr_db"} & set(front[1].fidelity)
    assert isinstance(outcome.details.steps[0], StaticDetails | DynamicDetails)
    assert all(each.why_not for each in front[1:] if not each.chosen)


def test_what_one_method_has_quantized_no_other_says_to_be_in_float(tools, tmp_path):
    """Convolutions with fixed ranges, products with fresh ones: two methods, each of which leaves the other's layers."""
    nodes = [
        node("Conv", ["x", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Flatten", ["r1"], "f"),
        node("MatMul", ["f", "w2"], "h"),
        node("Relu", ["h"], "r2"),
        node("MatMul", ["r2", "w3"], "y"),
    ]
    weights = {"w1": draw(8, 3, 3, 3), "w2": draw(512, 64) / 20, "w3": draw(64, 10)}
    model = tools.build(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 10]}, weights)
    samples = tools.Feeds(x=draw(60, 3, 8, 8))
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.9] * (len(models) - 2), 0.5])
    outcome = apply(io.copy(model), MixedPrecision(candidates=("dynamic",), max_drop=0.2), given)
    # Without fixed ranges there are no others to make, and no reason to look for in the data.
    assert ([each.name for each in outcome.details.front], outcome.details.not_made) == (["float32", "dynamic"], ())
    outcome = apply(model, MixedPrecision(candidates=("static", "dynamic"), max_drop=0.2), given)
    assert {each.name: each.why_not for each in outcome.details.front}["static convolutions, dynamic products"] is None
    fixed, fresh = outcome.details.steps
    assert ([layer.node for layer in fixed.layers], [layer.node for layer in fresh.layers]) == (["c1"], ["h"])
    # The last product has too few weights for a range of its own in every run.
    left = [(each.node, each.reason) for step in (fixed, fresh) for each in step.in_float]
    assert left == [("y", "it has fewer than 4096 weights")]


def test_hardly_smaller_is_not_worth_a_loss(tools, tmp_path):
    """Convolutions of single channels have no blocks of 4 bits, so that only the product at the end gets smaller by them."""
    nodes = [
        node("Conv", ["x", "w1"], "c1", group=1024),
        node("Flatten", ["c1"], "f"),
        node("MatMul", ["f", "w2"], "y"),
    ]
    model = tools.build(
        nodes, {"x": ["n", 1024, 5, 5]}, {"y": ["n", 2]}, {"w1": draw(1024, 1, 5, 5), "w2": draw(1024, 2)}
    )
    samples = tools.Feeds(x=draw(30, 1024, 5, 5))
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, 0.9, 0.9][: len(models)])
    outcome = apply(model, MixedPrecision(candidates=("weights8", "weights4"), max_drop=0.5), given)
    _, eight, four = outcome.details.front
    assert 0.95 * eight.size_bytes < four.size_bytes < eight.size_bytes
    assert (eight.chosen, eight.why_not) == (True, None)
    assert four.why_not == "it is hardly smaller or faster than the chosen one, and further from the original"


def test_nothing_pays_is_one_plain_sentence(tools, tmp_path):
    model = products(tools)
    samples = tools.Feeds(x=draw(40, 64))
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[1.7] * (len(models) - 1)])
    outcome = apply(model, MixedPrecision(candidates=("static", "dynamic")), given)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "no_gain"
    assert "INT8 does not pay on this target" in outcome.reason
    assert "1.70 times" in outcome.reason
    assert "keep float32" in outcome.reason
    assert len(outcome.details.front) > 1


def test_a_gate_on_held_out_samples_overrules_speed(tools, tmp_path):
    model = products(tools)
    samples = tools.Feeds(x=draw(60, 64))
    gates = (Gate(metric="sqnr_db", rule="min", value=90),)
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.4] * (len(models) - 1)], gates=gates)
    outcome = apply(model, MixedPrecision(candidates=("dynamic",), max_drop=0.5), given)
    assert isinstance(outcome, Refusal)
    assert "sqnr_db" in outcome.reason


def test_size_at_the_speed_of_float(tools, tmp_path):
    model = convolutions(tools)
    samples = tools.Feeds(x=draw(60, 3, 8, 8))

    def race(models):
        """Whatever computes in integers is slow."""
        slow = [any(each.op_type == "QuantizeLinear" for each in candidate.graph) for candidate in models]
        return [1.5 if each else 1.0 for each in slow]

    given = context(tools, model, samples, tmp_path, race=race)
    outcome = apply(model, MixedPrecision(minimise="size", max_drop=0.2), given)
    assert isinstance(outcome, Change)
    assert not any(each.op_type == "QuantizeLinear" for each in model.graph)
    assert "Computing in integers does not pay on this target" in outcome.summary


def test_tables_of_embeddings_may_take_four_bits(tools, tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("ReduceMean", ["e"], ["m"], name="pool", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="head"),
    ]
    weights = {"table": draw(400, 64), "w": draw(64, 128)}
    model = tools.build(nodes, {"ids": (7, ["n", "t"])}, {"y": ["n", 128]}, weights)
    samples = tools.Feeds(ids=RANDOM.integers(0, 400, (60, 12)))
    before = tools.run(model, {"ids": samples.arrays["ids"][:8]})["y"]
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.6] * (len(models) - 1)])
    step = MixedPrecision(candidates=("static", "dynamic", "weights4"), max_drop=0.2)
    outcome = apply(model, step, given)
    assert isinstance(outcome, Change)
    names = {each.name: each for each in outcome.details.front}

    assert names["dynamic, tables in 4 bits"].size_bytes < 0.85 * names["dynamic"].size_bytes
    assert "static, all layers, tables in 4 bits" in names
    assert names["dynamic, tables in 4 bits"].fidelity["sqnr_db"] > 15
    assert tools.sqnr(before, tools.run(model, {"ids": samples.arrays["ids"][:8]})["y"]) > 15


def test_the_layer_with_outliers_is_the_most_sensitive(tools, tmp_path):
    model = convolutions(tools)
    given = context(tools, model, tools.Feeds(x=draw(16, 3, 8, 8)), tmp_path)
    feeds = [{"x": draw(8, 3, 8, 8)}]
    found = sensitivities(model, ranges(model, given), integer_types.choose(providers_profile()), feeds, given)
    assert max(found, key=found.get) == "c2"
    assert found["c2"] > 10 * found["c3"] > 0


def providers_profile():
    from engine.runtime import processor

    return processor.cpu_profile()


def test_bisection_leaves_the_most_sensitive_layers_in_float(tools, tmp_path):
    model = convolutions(tools, close=True)
    samples = tools.Feeds(x=draw(200, 3, 8, 8))
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.5] * (len(models) - 1)])
    outcome = apply(model, MixedPrecision(candidates=("static",), max_drop=0.01), given)
    made = [each.name for each in (outcome.details.front)]
    names = [name for name in made if not name.endswith("kinds of layers by measurement")]
    assert len(names) == len(made) - 1
    assert names == ["float32", "static, all layers", "static, 1 most sensitive layers not"]
    assert next(iter(outcome.details.sensitivity)) == "c2"


def test_what_the_pass_left_out_the_recipe_has_not_excluded(tools, tmp_path):
    model = convolutions(tools, close=True)
    samples = tools.Feeds(x=draw(200, 3, 8, 8))
    given = context(tools, model, samples, tmp_path, race=lambda models: [1.0, *[0.5] * (len(models) - 1)])
    step = MixedPrecision(candidates=("static",), max_drop=0.01, exclude=("c3",))
    outcome = apply(model, step, given)
    steps = [each for each in outcome.details.steps if isinstance(each, StaticDetails)]
    reasons = {each.node: each.reason for each in steps[0].in_float}
    assert reasons["c3"] == "excluded by the recipe"
    assert reasons["c2"] == "its rounding is among the 1 that move the outputs most"


@pytest.mark.parametrize("refined", ["first", "none"])
def test_a_slow_network_is_refined_once_or_never(tools, tmp_path, monkeypatch, refined):
    little = effort.Effort(
        fidelity_samples=20, refined=refined, refine_samples=10, bisections=2, seconds_per_sample=0.2
    )
    monkeypatch.setattr(effort, "choose", lambda *_: little)
    made = []
    real = static.quantize
    monkeypatch.setattr(static, "quantize", lambda *given: (made.append(given[1]), real(*given))[1])
    model = convolutions(tools)
    samples = tools.Feeds(x=draw(100, 3, 8, 8))

    def race(models):
        return [1.0, *[0.5] * (len(models) - 1)]

    outcome = apply(model, MixedPrecision(), context(tools, model, samples, tmp_path, race=race))
    assert [each.improve for each in made] == [refined == "first"] + [False] * (len(made) - 1)
    assert len(made) > 2
    assert not any(each.equalise for each in made)
    assert "about 200 ms, so candidates were compared on 20 samples" in outcome.details.effort


def test_regions_pay_for_their_borders(tools, tmp_path):
    """A chain of two layers that gain 3 and 1 ms: where crossing a border costs 1.5 ms, they go together or not at all."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "w"], "b"),
        node("Sigmoid", ["b"], "s"),
        node("Conv", ["s", "w"], "y"),
    ]
    model = tools.build(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, {"w": draw(4, 4, 1, 1)})
    plan = make_plan(model)
    sizes = dict.fromkeys(["x", "a", "b", "s", "y"], 100)

    def times(a, b, y):
        return Times({"a": 5.0, "b": 5.0, "y": 5.0}, {"a": 5 - a, "b": 5 - b, "y": 5 - y}, per_number=0.015)

    assert choose(plan, times(3, 1, 1), sizes) == {"y"}
    assert choose(plan, times(2, 0.5, 0), sizes) == {"a", "b", "y"}
    assert choose(plan, times(4, -2.5, 0), sizes) == {"b", "y"}
    assert choose(plan, times(3, 1, 1), sizes, border=3.0) == {"a", "b", "y"}
    assert choose(plan, times(9, 9, 9), sizes) == frozenset()


def test_without_layers_or_already_quantized(tools, tmp_path):
    del tmp_path
    model = tools.build([node("Relu", ["x"], "y")], {"x": ["n", 3]}, {"y": ["n", 3]})
    step = MixedPrecision()
    step.prepare(model)
    refusal = step.check(model)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "not_applicable"


@pytest.mark.parametrize(
    "opset", [pytest.param(11, marks=pytest.mark.soak), 13, pytest.param(17, marks=pytest.mark.soak)]
)
def test_regions_measured_on_this_machine_keep_the_outputs(tools, tmp_path, opset):
    """The whole pass with the real profile: whatever it makes is valid and near the original."""
    nodes = [
        node("Conv", ["x", "w1"], "a", pads=[1, 1, 1, 1]), node("Relu", ["a"], "r"),
        node("Conv", ["r", "w2"], "b", pads=[1, 1, 1, 1]), node("Add", ["b", "r"], "s"),
        node("GlobalAveragePool", ["s"], "p"), node("Flatten", ["p"], "f"), node("Gemm", ["f", "w3"], "y"),
    ]  # fmt: skip
    weights = {"w1": draw(32, 3, 3, 3) / 5, "w2": draw(32, 32, 3, 3) / 17, "w3": draw(32, 10)}
    model = tools.build(nodes, {"x": ["n", 3, 24, 24]}, {"y": ["n", 10]}, weights, opset=opset)
    samples = tools.Feeds(x=draw(60, 3, 24, 24))
    before = tools.run(model, {"x": samples.arrays["x"][:4]})
    race, gates = lambda models: [1.0, *[0.5] * (len(models) - 1)], (Gate(metric="sqnr_db", rule="min", value=15),)
    given = context(tools, model, samples, tmp_path, race=race, gates=gates)
    outcome = apply(model, MixedPrecision(candidates=("regions", "static"), max_drop=0.2), given)
    assert isinstance(outcome, Change)
    for optimise in (True, False):
        found = tools.run(model, {"x": samples.arrays["x"][:4]}, optimise=optimise)
        assert tools.sqnr(before["y"], found["y"]) > 15
