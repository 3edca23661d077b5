"""Layers that are thin in the activation's metric are split, others stay with a reason; what is computed stays the same."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from pydantic import ValidationError

from engine.contract import Workload
from engine.graph import io
from engine.passes.factorise import Factorise
from engine.report.detail_parts import LeftAlone
from engine.report.values import Change, Refusal


def thin(rng, outputs, inputs, rank):
    """Weights of this rank, with a little noise."""
    product = rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, inputs)) / np.sqrt(rank * inputs)
    return (product + 1e-4 * rng.standard_normal(product.shape)).astype(np.float32)


def perceptron(tools, rank=8):
    """MatMul, Gemm in both layouts with alpha, beta and bias, and one that is too small."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": thin(rng, 96, 64, rank).T,
        "b1": rng.standard_normal(96).astype(np.float32),
        "w2": thin(rng, 80, 96, rank),
        "b2": rng.standard_normal(80).astype(np.float32),
        "w3": thin(rng, 72, 80, rank).T,
        "small": rng.standard_normal((72, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "b1"], ["a1"], name="bias"),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], name="second", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Gemm", ["r2", "w3"], ["h3"], name="third"),
        helper.make_node("Tanh", ["h3"], ["r3"], name="tanh"),
        helper.make_node("MatMul", ["r3", "small"], ["y"], name="last"),
    ]
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 5]}, weights)


def convolutions(tools):
    """A 1x1 with stride and padding, kernels with stride, dilation and auto_pad, a grouped one; all of low rank."""
    rng = np.random.default_rng(1)
    down, up = rng.standard_normal((8, 64)) / 8, rng.standard_normal((64, 8)) / 3
    core = rng.standard_normal((8, 8, 3, 3)) / 8
    kernel = np.einsum("or,rskl,sc->ockl", up, core, down).astype(np.float32)
    weights = {
        "w1": thin(rng, 64, 64, 8).reshape(64, 64, 1, 1),
        "b1": rng.standard_normal(64).astype(np.float32),
        "w2": kernel,
        "b2": rng.standard_normal(64).astype(np.float32),
        "w3": kernel[::-1].copy(),
        "w4": rng.standard_normal((64, 16, 3, 3)).astype(np.float32) / 12,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h1"], name="point", strides=[2, 2], pads=[1, 0, 1, 0]),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["h2"], name="wide", dilations=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["h3"], name="strided", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["h3"], ["r3"], name="relu3"),
        helper.make_node("Conv", ["r3", "w4"], ["y"], name="grouped", group=4, pads=[1, 1, 1, 1]),
    ]
    return tools.build(nodes, {"x": ["n", 64, 14, 14]}, {"y": ["n", 64, "h", "w"]}, weights)


def apply(tools, model, samples, race=None, **parameters):
    step = Factorise(**parameters)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    context = tools.context(io.copy(model), samples)
    context = replace(context, race=race or (lambda models: [1.0] + [0.9] * (len(models) - 1)))
    return step.apply(model, {}, context)


def vectors(count=300, seed=2):
    return np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)


def images(count=24, seed=3):
    return np.random.default_rng(seed).standard_normal((count, 64, 14, 14)).astype(np.float32)


def test_matrices_of_low_rank_are_split_without_loss(tools):
    model = perceptron(tools)
    held_out = vectors(20, seed=9)
    reference = tools.run(model, {"x": held_out})["y"]
    change = apply(tools, model, tools.Feeds(x=vectors()), energy=0.9999)
    assert isinstance(change, Change)
    assert Change.model_validate_json(change.model_dump_json()) == change
    ranks = [(layer.node, layer.ranks) for layer in change.details.layers]
    assert ranks == [("first", (8,)), ("second", (8,)), ("third", (8,))]
    assert change.details.left_alone == (LeftAlone(node="last", reason="it has fewer than 4096 weights"),)
    for layer in change.details.layers:
        assert layer.held_out_error[layer.method] < 1e-3
    sizes = {name: tuple(value.const_value.shape.numpy()) for name, value in model.graph.initializers.items()}
    assert sizes["w1_down"] == (64, 8)
    assert sizes["w1_up"] == (8, 96)
    assert sizes["w2_down"] == (8, 96)
    assert sizes["w2_up"] == (80, 8)
    assert not {"w1", "w2", "w3"} & set(sizes)
    for optimise in (False, True):
        assert tools.sqnr(reference, tools.run(model, {"x": held_out}, optimise=optimise)["y"]) > 40
    assert tools.run(model, {"x": held_out[:1]})["y"].shape == (1, 5)


def test_convolutions_of_low_rank_are_split_without_loss(tools):
    model = convolutions(tools)
    held_out = images(3, seed=9)
    reference = tools.run(model, {"x": held_out})["y"]
    change = apply(tools, model, tools.Feeds(x=images()), energy=0.9999)
    assert {layer.node: layer.ranks for layer in change.details.layers} == {
        "point": (8,),
        "wide": (8, 8),
        "strided": (8, 8),
    }
    assert change.details.left_alone == (
        LeftAlone(node="grouped", reason="its channels are in groups, which is thin already"),
    )
    assert sum(node.op_type == "Conv" for node in model.graph) == 2 + 3 + 3 + 1
    for optimise in (False, True):
        assert tools.sqnr(reference, tools.run(model, {"x": held_out}, optimise=optimise)["y"]) > 40


def test_ranks_follow_the_inputs_and_not_the_weights(tools):
    # Weights of full rank, inputs that lie in few directions: only those have to be kept.
    rng = np.random.default_rng(5)
    weights = {"w": (rng.standard_normal((128, 128)) / 11).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    model = tools.build(nodes, {"x": ["n", 128]}, {"y": ["n", 128]}, weights)
    x = (rng.standard_normal((400, 12)) @ rng.standard_normal((12, 128))).astype(np.float32)
    reference = tools.run(model, {"x": x[300:]})["y"]
    change = apply(tools, model, tools.Feeds(x=x[:300]), energy=0.999)
    assert change.details.layers[0].ranks == (16,)
    assert tools.sqnr(reference, tools.run(model, {"x": x[300:]})["y"]) > 25


def test_ratio_bounds_the_multiplications(tools):
    for build, samples in ((perceptron, tools.Feeds(x=vectors())), (convolutions, tools.Feeds(x=images(8)))):
        model = build(tools)
        change = apply(tools, model, samples, ratio=0.5, multiple=1)
        assert len(change.details.layers) == 3
        for layer in change.details.layers:
            assert 0.35 < layer.multiplications <= 0.5


def test_layers_of_full_rank_stay_whole(tools):
    model = perceptron(tools, rank=90)
    before = io.to_bytes(model)
    refusal = apply(tools, model, tools.Feeds(x=vectors()), energy=0.999)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.node) == ("no_gain", "first")
    assert "of its multiplications; at most 70% pay" in refusal.reason
    assert io.to_bytes(model) == before


def test_what_loses_the_race_stays_whole(tools):
    model = perceptron(tools)
    raced = []

    def race(models):
        raced.extend(models)
        return [1.0, 1.02, 0.8, 0.8]

    change = apply(tools, model, tools.Feeds(x=vectors()), race, energy=0.9999)
    assert len(raced) == 4  # three kinds of layers, and the network as it is
    assert len(change.details.layers) == 2
    (left,) = [left for left in change.details.left_alone if left.node != "last"]
    assert "it is not faster on this target at rank 8" in left.reason
    for each in raced[1:]:
        assert tools.run(each, {"x": vectors(2)})["y"].shape == (2, 5)


def test_without_a_race_multiplications_decide(tools):
    def race(models):
        raise AssertionError(f"{len(models)} networks were raced")

    context = replace(tools.context(perceptron(tools), tools.Feeds(x=vectors())), race=race)
    change = Factorise(race=False, energy=0.9999).apply(perceptron(tools), {}, context)
    assert [layer.time_of_network for layer in change.details.layers] == [None] * 3


def test_ranks_that_are_given_are_taken_without_a_race(tools):
    def race(models):
        raise AssertionError(f"{len(models)} networks were raced")

    model = perceptron(tools, rank=90)
    change = apply(tools, model, tools.Feeds(x=vectors()), race, ranks={"second": 60, "first": 10})
    assert {layer.node: layer.ranks for layer in change.details.layers} == {"first": (10,), "second": (60,)}
    names = {node.name for node in model.graph}
    assert {"first_down", "second_down"} <= names
    assert "third_down" not in names
    kernels = convolutions(tools)
    (layer,) = apply(tools, kernels, tools.Feeds(x=images(8)), ranks={"wide": 16}).details.layers
    # The same share of both sides.
    assert layer.ranks == (16, 16)


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [
        ({"nowhere": 8}, "`ranks` names `nowhere`: the network has no such layer."),
        ({"relu": 4}, "`ranks` names `relu`: the network has no such layer."),
        ({"first": 64}, "`ranks` asks for rank 64 of `first`, which has rank 64 as it is."),
    ],
)
def test_ranks_that_no_layer_can_have_are_refused(tools, ranks, reason):
    refusal = apply(tools, perceptron(tools), tools.Feeds(x=vectors()), ranks=ranks)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    if "first" not in ranks:
        assert refusal.hint == "Layers that can be split: first, second, third, last."


def test_a_ratio_and_ranks_are_two_amounts():
    with pytest.raises(ValidationError, match="either `ratio` or `ranks`"):
        Factorise(ratio=0.5, ranks={"first": 8})
    load = Workload(calibrate=512, select=512, layers=20, parameters=10**6)
    one, every = Factorise(ranks={"first": 8}).work(load), Factorise().work(load)
    assert one.timed_s == 0 < every.timed_s
    assert one.per_weight_s < every.per_weight_s


@pytest.mark.parametrize("build", [perceptron, convolutions])
def test_a_second_time_there_is_nothing_to_do(tools, build):
    model = build(tools)
    samples = tools.Feeds(x=vectors() if build is perceptron else images())
    apply(tools, model, samples, energy=0.9999)
    before = io.to_bytes(model)
    refusal = apply(tools, model, samples, energy=0.9)
    assert isinstance(refusal, Refusal)
    assert io.to_bytes(model) == before


def test_a_second_time_is_called_done_where_every_layer_is_a_pair(tools):
    rng = np.random.default_rng(0)
    weights = {"w1": thin(rng, 256, 640, 8), "w2": thin(rng, 640, 256, 8)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], name="first", transB=1),
        helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
        helper.make_node("Gemm", ["t", "w2"], ["y"], name="second", transB=1),
    ]
    model = tools.build(nodes, {"x": ["n", 640]}, {"y": ["n", 640]}, weights)
    x = np.random.default_rng(1).standard_normal((64, 640)).astype(np.float32)
    apply(tools, model, tools.Feeds(x=x), ratio=0.2)
    refusal = apply(tools, model, tools.Feeds(x=x), ratio=0.2)
    assert refusal.code == "already_done"
    assert "thin pair" in refusal.reason


def test_a_ratio_beyond_the_break_even_is_refused_at_submit():
    with pytest.raises(ValidationError):
        Factorise(ratio=0.8)


def test_shared_and_excluded_layers_stay_with_a_reason(tools):
    rng = np.random.default_rng(6)
    weights = {"w": thin(rng, 96, 96, 8), "v": thin(rng, 96, 96, 8)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="two"),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="three"),
    ]
    model = tools.build(nodes, {"x": ["n", 96]}, {"y": ["n", 96]}, weights)
    x = np.random.default_rng(1).standard_normal((64, 96)).astype(np.float32)
    refusal = apply(tools, model, tools.Feeds(x=x), exclude=("three",))
    assert (refusal.code, refusal.node) == ("not_applicable", "one")
    assert "`w` is shared with another operator" in refusal.reason
    change = apply(tools, model, tools.Feeds(x=x))
    assert [layer.node for layer in change.details.layers] == ["three"]


def test_it_runs_as_a_job(workspace, tools):
    from engine import run
    from engine.spec import Compress

    x = vectors(120)
    folder = workspace(io.to_bytes(perceptron(tools)), x=x)
    recipe = {"passes": [{"type": "factorise", "energy": 0.9999, "race": False}]}
    gates = [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.7}]
    report = run(Compress.model_validate({"recipe": recipe, "gates": gates}), folder, lambda _event: None)
    assert report.steps[0].change is not None, report.steps[0].refusal
    assert report.steps[0].size.compressed < 0.7 * report.steps[0].size.original
