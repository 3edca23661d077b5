"""The pass drops what the network does not need, says what each branch is worth, and stops where it hurts."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from engine.contract import Workload
from engine.graph import io
from engine.passes.drop_blocks import DropBlocks
from engine.report.values import Change, Refusal
from engine.target import Target


def stack(network, gains, *, softmax=True):
    """A stem and residual blocks whose branches are scaled by these gains, and a classifier."""
    net = network(seed=4)
    x = net.relu(net.conv("image", 3, 8, name="stem"))
    for number, gain in enumerate(gains):
        branch = net.conv(net.relu(net.conv(x, 8, 8, name=f"a{number}")), 8, 8, name=f"b{number}")
        net.weights[f"b{number}.w"] *= gain
        net.weights[f"b{number}.b"] *= gain
        x = net.relu(net.op("Add", branch, x, name=f"sum{number}"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    head = net.op("Gemm", flat, net.normal("head.w", 5, 8), net.normal("head.b", 5), name="head", transB=1)
    if softmax:
        head = net.op("Softmax", head, axis=-1)
    return ir.from_proto(onnx.load_from_string(net.build(head)))


@pytest.fixture
def samples(tools, images):
    return tools.Feeds(image=images(24).astype(np.float32) / 255)


def apply(tools, model, samples, **parameters):
    step = DropBlocks(samples=24, **parameters)
    refusal = step.check(model)
    return refusal or step.apply(model, {}, tools.context(io.copy(model), samples))


def scores(tools, model, samples):
    return tools.run(model, samples.arrays)["scores"]


def test_the_branches_of_least_damage_go_first(tools, network, samples):
    model = stack(network, [0.3, 0.001, 1.0, 0.01])
    before = scores(tools, model, samples)
    change = apply(tools, model, samples, count=2, max_kl=None)
    assert isinstance(change, Change)
    assert change.details.order == ("sum1", "sum3")
    assert change.details.metric == "kl"
    damage = {block.node: block.damage for block in change.details.blocks}
    assert sorted(damage, key=lambda name: damage[name])[:2] == ["sum1", "sum3"]
    assert all(block.parameters == 2 * (8 * 8 * 9 + 8) for block in change.details.blocks)
    assert [block.dropped for block in change.details.blocks] == [False, True, False, True]
    assert Change.model_validate_json(change.model_dump_json()) == change
    after = scores(tools, model, samples)
    divergence = float((before * np.log(before / after)).sum(-1).mean())
    assert divergence == pytest.approx(change.details.after, rel=0.02)
    assert {node.name for node in model.graph if node.op_type == "Conv"} == {"stem", "a0", "b0", "a2", "b2"}


def test_only_named_branches_go(tools, network, samples):
    model = stack(network, [0.3, 0.001, 1.0, 0.01])
    change = apply(tools, model, samples, max_kl=None, only=["sum0", "sum2"])
    assert isinstance(change, Change)
    assert sorted(change.details.order) == ["sum0", "sum2"]
    assert {each.node for each in change.details.not_considered} == {"sum1", "sum3"}
    assert {node.name for node in model.graph if node.op_type == "Conv"} == {"stem", "a1", "b1", "a3", "b3"}


def test_a_name_that_is_no_branch_is_refused_with_those_that_are(tools, network, samples):
    refusal = apply(tools, stack(network, [0.3, 0.01]), samples, only=["sum0", "stem"])
    assert isinstance(refusal, Refusal)
    assert refusal.node == "stem"
    assert "sum0, sum1" in refusal.hint


def test_exactly_these_branches_go_whatever_they_cost(tools, network, samples):
    model = stack(network, [0.3, 0.001, 1.0, 0.01])
    change = apply(tools, model, samples, exactly=["sum2", "sum0"], max_kl=1e-9)
    assert isinstance(change, Change)
    assert change.details.order == ("sum0", "sum2")
    assert (change.details.metric, change.details.samples) == (None, 0)  # nothing was scored
    assert [block.dropped for block in change.details.blocks] == [True, False, True, False]
    assert Change.model_validate_json(change.model_dump_json()) == change
    assert {node.name for node in model.graph if node.op_type == "Conv"} == {"stem", "a1", "b1", "a3", "b3"}
    refusal = apply(tools, stack(network, [0.3, 0.01]), samples, exactly=["stem"])
    assert refusal.reason.startswith("`exactly` names `stem`: it is no sum")
    assert "sum0, sum1" in refusal.hint
    with pytest.raises(ValidationError, match="leave out `only`, `count` and `share`"):
        DropBlocks(exactly=("sum0",), count=1)


def test_named_branches_are_no_work():
    load = Workload(calibrate=512, select=512, layers=20, parameters=10**6)
    assert DropBlocks(exactly=("sum0",)).work(load).runs == 0 < DropBlocks().work(load).runs


def test_the_limit_stops_it(tools, network, samples):
    model = stack(network, [1.0, 0.001, 1.0, 0.001])
    change = apply(tools, model, samples, max_kl=0.01)
    assert sorted(change.details.order) == ["sum1", "sum3"]
    assert change.details.after <= 0.01


def test_share_is_of_the_branches(tools, network, samples):
    change = apply(tools, stack(network, [0.1, 0.2, 0.1, 0.2]), samples, share=0.26, max_kl=None)
    assert len(change.details.order) == 1


def test_outputs_that_are_no_classes_are_judged_by_noise(tools, network, samples):
    net = network(seed=4)
    x = net.conv("image", 3, 8, name="stem")
    for number, gain in enumerate((0.01, 1.0)):
        branch = net.conv(net.relu(net.conv(x, 8, 8, name=f"a{number}")), 8, 8, name=f"b{number}")
        net.weights[f"b{number}.w"] *= gain
        net.weights[f"b{number}.b"] *= gain
        x = net.op("Add", branch, x, name=f"sum{number}")
    model = ir.from_proto(onnx.load_from_string(net.build(net.conv(x, 8, 1, name="final"), out_shape=("n", 1, 12, 12))))
    before = scores(tools, model, samples)
    change = apply(tools, model, samples, min_sqnr_db=20)
    assert change.details.metric == "noise_share"
    assert change.details.order == ("sum0",)
    # Per sample, then averaged: close to the whole's.
    assert tools.sqnr(before, scores(tools, model, samples)) > 19


def test_it_refuses_with_a_reason_when_every_branch_hurts(tools, network, samples):
    model = stack(network, [1.0, 1.0])
    before = io.to_bytes(model)
    refusal = apply(tools, model, samples, max_kl=1e-6)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "too_lossy"
    assert "1e-06 is allowed" in refusal.reason
    assert refusal.node in {"sum0", "sum1"}
    assert io.to_bytes(model) == before


def test_it_refuses_networks_without_branches(tools, network, samples):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    inner = net.conv(x, 8, 8, name="one")
    total = net.op("Add", x, net.relu(inner), name="sum")
    flat = net.op("Flatten", net.op("GlobalAveragePool", net.op("Concat", total, inner, axis=1)))
    model = ir.from_proto(onnx.load_from_string(net.build(flat, out_shape=("n", 16))))
    refusal = apply(tools, model, samples)
    assert (refusal.code, refusal.node) == ("not_applicable", "sum")
    assert "needed elsewhere" in refusal.reason
    refusal = apply(tools, stack(network, []), samples)
    assert refusal.code == "not_applicable"


def test_a_second_time_removes_nothing_more_than_was_asked(tools, network, samples):
    model = stack(network, [0.001, 1.0, 0.001])
    original = io.copy(model)
    apply(tools, model, samples, max_kl=0.01)
    before = io.to_bytes(model)
    step = DropBlocks(samples=24, max_kl=0.01)
    # The limit is against the original, so a second pass cannot go beyond it.
    refusal = step.apply(model, {}, tools.context(original, samples))
    assert isinstance(refusal, Refusal)
    assert io.to_bytes(model) == before


def test_it_runs_as_a_job(workspace, network, images):
    from engine import run
    from engine.spec import Compress

    model = io.to_bytes(stack(network, [0.001, 1.0, 0.001]))
    folder = workspace(model, image=images(40))
    spec = Compress.model_validate(
        {"recipe": {"passes": [{"type": "drop_blocks", "max_kl": 0.01}]}, "target": Target().model_dump()}
    )
    report = run(spec, folder, lambda _event: None)
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert report.size.compressed < report.size.original
