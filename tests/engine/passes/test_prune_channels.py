"""prune_channels: what it removes, what it promises, what it refuses, and how it meets a requirement."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pydantic import ValidationError

import engine
from engine.contract import Workload
from engine.data.subsets import First
from engine.errors import SpecInvalidError, VerificationFailedError
from engine.graph import io, macs
from engine.passes.prune_channels import PruneChannels
from engine.report.values import Change, Quality, Refusal


@pytest.fixture
def model(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def samples(images, feeds_of):
    return feeds_of({"image": images(64)})


def quality(drop):
    return (
        Quality(
            metric="top1",
            original=0.9,
            compressed=0.9 - drop,
            difference=-drop,
            interval={"low": -drop, "high": -drop},
            standard_error=0.0,
            samples=100,
        ),
    )


@pytest.mark.parametrize("importance", ["magnitude", "activation", "reconstruction"])
def test_half_of_the_channels_goes(model, samples, context, importance):
    before = macs.total(model)
    change = PruneChannels(sparsity=0.5, importance=importance).apply(model, {}, context(model.clone(), samples))
    assert isinstance(change, Change)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert macs.total(model) < 0.4 * before
    assert Change.model_validate_json(change.model_dump_json()) == change
    assert all(group.kept == group.channels // 2 for group in change.details.groups)
    assert change.details.oracle.difference <= change.details.oracle.tolerance
    assert change.details.macs_before == before > change.details.macs_after == macs.total(model)
    assert change.details.rounds == 3
    assert any(item.reason.startswith("gives the network's output") for item in change.details.frozen)


def test_repair_pays(model, samples, context, images):
    from engine.runtime import sessions
    from engine.target import Target

    x = images(64, seed=5).astype(np.float32)
    expected = next(iter(sessions.session(io.to_bytes(model), Target()).run({"image": x}).values()))
    errors = []
    for reconstruct in (False, True):
        cut = model.clone()
        PruneChannels(sparsity=0.5, reconstruct=reconstruct).apply(cut, {}, context(model, samples))
        found = next(iter(sessions.session(io.to_bytes(cut), Target()).run({"image": x}).values()))
        errors.append(np.square(found - expected).sum())
    assert errors[1] < 0.5 * errors[0]


def test_widths_are_rounded_and_have_a_minimum(model, samples, context):
    def widths(**options):
        step = PruneChannels(reconstruct=False, importance="magnitude", **options)
        change = step.apply(model.clone(), {}, context(model, samples))
        return {group.kept for group in change.details.groups}

    assert widths(sparsity=0.6, round_to=4) == {8, 12}
    assert widths(sparsity=0.9, round_to=1, min_width=6) == {6}
    assert widths(sparsity=0.3, round_to=1) == {11, 22}


def test_global_scope_spreads_by_importance(model, samples, context):
    change = PruneChannels(sparsity=0.4, scope="global", round_to=1).apply(model, {}, context(model.clone(), samples))
    shares = {round(1 - group.kept / group.channels, 2) for group in change.details.groups}
    assert len(shares) > 1
    total = sum(group.channels for group in change.details.groups)
    assert abs(sum(group.kept for group in change.details.groups) / total - 0.6) < 0.06


def test_excluded_nodes_keep_their_channels(model, samples, context):
    change = PruneChannels(sparsity=0.5, exclude=("a1",)).apply(model, {}, context(model.clone(), samples))
    assert not any("a1" in group.producers for group in change.details.groups)
    assert model.graph.initializers["a1.w"].shape[0] == 16
    with pytest.raises(SpecInvalidError, match="nosuch"):
        PruneChannels(exclude=("nosuch",)).check(model)


def test_groups_keep_exactly_what_is_said(model, samples, context):
    before = {name: value.shape for name, value in model.graph.initializers.items()}
    # By kind and layer, or by the layer alone; any layer that makes the channels will do.
    step = PruneChannels(widths={"channels:a1": 5, "b2": 9})
    change = step.apply(model, {}, context(model.clone(), samples))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert {group.name: group.kept for group in change.details.groups} == {"g1": 5, "g3": 9}
    shapes = {name: tuple(value.shape) for name, value in model.graph.initializers.items()}
    assert shapes["a1.w"] == (5, 16, 3, 3)
    assert shapes["b2.w"] == (9, 32, 3, 3)
    assert shapes["short.w"][0] == shapes["head.w"][1] == 9
    assert shapes["stem.w"] == tuple(before["stem.w"])
    assert change.details.rounds == 4
    assert any(layer.taken for layer in change.details.layers)


def test_rounds_can_be_fewer(model, samples, context):
    change = PruneChannels(widths={"a1": 4}, rounds=1).apply(model, {}, context(model.clone(), samples))
    assert change.details.rounds == 1
    assert model.graph.initializers["a1.w"].shape[0] == 4


def test_fewer_samples_can_do(model, samples, context):
    load = Workload(calibrate=512, select=512, layers=20, parameters=10**6)
    assert PruneChannels(samples=64).work(load).runs < PruneChannels().work(load).runs
    few, same = (model.clone() for _ in range(2))
    PruneChannels(widths={"a1": 8}, samples=16).apply(few, {}, context(model, samples))
    PruneChannels(widths={"a1": 8}).apply(same, {}, context(model, First(samples, 16)))
    weights = [each.graph.initializers["a2.w"].const_value.numpy() for each in (few, same)]
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize(
    ("widths", "message", "hint"),
    [
        (
            {"a7": 3},
            "`widths` names `a7`, which is no group of channels of the network.",
            "There is `channels:stem`, `channels:a1`, `channels:b1`, `channels:b2`.",
        ),
        ({"b2": 9, "channels:short": 9}, "`widths` names one group twice: `b2` and `channels:short`.", None),
        ({"a1": 17}, "`widths` asks for 17 channels of `a1`, which has 16.", None),
    ],
)
def test_widths_of_no_group_are_told(model, samples, context, widths, message, hint):
    with pytest.raises(SpecInvalidError) as caught:
        PruneChannels(widths=widths).apply(model, {}, context(model.clone(), samples))
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_channels_of_grouped_convolutions_go_in_sets(network, samples, context):
    net = network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    x = net.conv(net.relu(net.conv(x, 16, 16, name="grouped", group=4)), 16, 5, 1, name="last")
    model = ir.from_proto(onnx.load_from_string(net.build(net.op("Flatten", net.op("GlobalAveragePool", x)))))
    made = model.clone()
    PruneChannels(widths={"grouped": 8}, kinds=("channels",)).apply(made, {}, context(model, samples))
    assert made.graph.initializers["grouped.w"].shape[0] == 8
    with pytest.raises(
        SpecInvalidError, match="`grouped` cannot keep 7 of its 16 channels: they go in sets of 4"
    ) as caught:
        PruneChannels(widths={"grouped": 7}).apply(model.clone(), {}, context(model, samples))
    assert caught.value.hint == "It can keep 4 or 8."


def test_widths_and_a_share_are_two_amounts():
    with pytest.raises(ValidationError, match="either `widths` or `max_drop` says how much goes"):
        PruneChannels(widths={"a1": 3}, max_drop=0.01)


def test_refusals_name_the_reason(model, samples, context):
    outcome = PruneChannels(kinds=("heads",)).apply(model.clone(), {}, context(model, samples))
    assert isinstance(outcome, Refusal)
    assert "channels" in outcome.hint
    outcome = PruneChannels(sparsity=0.05, round_to=4).apply(model.clone(), {}, context(model, samples))
    assert outcome.code == "no_gain"


def test_the_oracle_stops_a_wrong_cut(model, samples, context, monkeypatch):
    from engine.prune import channels

    right = channels.remove

    def wrong(network, coupling, atoms):
        cut = right(network, coupling, atoms)
        value = cut.graph.initializers["head.w"]
        value.const_value = ir.tensor(value.const_value.numpy()[:, ::-1].copy(), name=value.name)
        return cut

    monkeypatch.setattr(channels, "remove", wrong)
    with pytest.raises(VerificationFailedError, match="silenced channels"):
        PruneChannels(sparsity=0.5).apply(model, {}, context(model.clone(), samples))


def test_the_largest_share_within_the_allowed_drop(model, samples, context):
    from dataclasses import replace

    total = io.weight_bytes(model)
    asked = replace(
        context(model.clone(), samples), evaluate=lambda cut: quality(0.1 * (1 - io.weight_bytes(cut) / total))
    )
    step = PruneChannels(max_drop=0.05, round_to=1, reconstruct=False, importance="magnitude")
    change = step.apply(model, {}, asked)
    assert 0.4 <= io.weight_bytes(model) / total - 0.1 <= 0.55
    assert len(change.details.tried) == 6


def test_size_and_latency_are_met(model, samples, context):
    from dataclasses import replace

    total = io.weight_bytes(model)
    step = PruneChannels(target_size_ratio=0.5, round_to=1, importance="magnitude", reconstruct=False)
    cut = model.clone()
    assert isinstance(step.apply(cut, {}, context(model, samples)), Change)
    assert 0.4 < io.weight_bytes(cut) / total <= 0.5
    raced = replace(
        context(model, samples), race=lambda models: [macs.total(each) / macs.total(models[0]) for each in models]
    )
    cut = model.clone()
    step = PruneChannels(target_latency_ratio=0.6, round_to=1, importance="magnitude", reconstruct=False)
    assert isinstance(step.apply(cut, {}, raced), Change)
    assert 0.5 < macs.total(cut) / macs.total(model) <= 0.6
    impossible = PruneChannels(target_size_ratio=0.001, importance="magnitude")
    assert impossible.apply(model.clone(), {}, context(model, samples)).code == "not_applicable"
    strict = replace(context(model, samples), evaluate=lambda _model: quality(0.2))
    step = PruneChannels(target_size_ratio=0.5, max_drop=0.01, importance="magnitude", reconstruct=False)
    assert step.apply(model.clone(), {}, strict).code == "too_lossy"


def test_without_data_nothing_is_refitted(model, samples, context):
    from dataclasses import replace

    change = PruneChannels(sparsity=0.5).apply(model, {}, replace(context(model.clone(), samples), has_data=False))
    assert change.details.layers == ()
    assert change.details.rounds == 1


def test_a_whole_job(residual_cnn, images, workspace):
    spec = engine.Compress.model_validate(
        {
            "recipe": {"passes": [{"type": "simplify"}, {"type": "prune_channels", "sparsity": 0.5}]},
            "gates": [
                {"metric": "size_bytes", "rule": "max_ratio", "value": 0.7},
                {"metric": "sqnr_db", "rule": "min", "value": -20},
            ],
        }
    )
    folder = workspace(residual_cnn(), image=images(96))
    report = engine.run(spec, folder, lambda _event: None)
    assert [step.status for step in report.steps] == ["applied", "applied"], report.steps[-1].refusal
    assert report.size.compressed < 0.7 * report.size.original
    assert report.steps[1].change.details.layers
