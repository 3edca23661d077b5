"""What freezes, what is tied, what is refused, and what the result says of itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from zoo import CONTRIB, Net

from engine.errors import SpecInvalidError
from engine.graph import io, labels, macs
from engine.graph.coupling import Frozen, analyse
from engine.graph.labels import Labels, UnfollowableError, Union
from engine.graph.masking import mask
from engine.graph.rules.catalogue import RULES
from engine.graph.slicing import remove


def image(net, *, size=8, channels=16):
    return net.conv(net.input("x", ["N", 3, size, size]), 3, channels)


def finish(net, x, channels):
    return net.done(net.head(x, channels, 4), ["N", 4])


def reasons(coupling):
    return {(item.op_type, item.reason) for item in coupling.frozen}


@pytest.fixture
def prune(run, difference):
    """Removes a share of every group, checks the result against the mask, and gives (pruned, coupling)."""

    def pruned_and_checked(proto, share=0.5, feeds=None, kinds=None, tolerance=1e-5):
        model = ir.from_proto(proto)
        coupling = analyse(model)
        atoms = set()
        for group in coupling.groups:
            if kinds is None or group.kind in kinds:
                count = int(len(coupling.units(group)) * share)
                atoms.update(atom for unit in coupling.choose(group, count, beside=atoms) for atom in unit.atoms)
        pruned, masked = remove(model, coupling, atoms), mask(model, coupling, atoms)
        assert atoms
        feeds = feeds or [
            {"x": np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)} for batch in (1, 2)
        ]
        assert difference(run(pruned, *feeds), run(masked, *feeds)) <= tolerance
        return pruned, coupling

    return pruned_and_checked


# --- labels themselves -----------------------------------------------------------------------------------------------


def dense(found: Labels):
    return np.broadcast_to(found.atoms, found.shape)


@given(
    st.sampled_from([(2, 3, 4), (6, 4), (1, 6, 2, 2), (24,), (4, 6, 1), (2, 12)]),
    st.sampled_from([(24,), (6, 4), (2, 12), (2, 3, 4), (4, 1, 6), (1, 24, 1), (3, 8), (2, 2, 6)]),
    st.integers(0, 3),
)
def test_reshape_of_small_labels_is_reshape_of_full_labels(old, new, axis):
    axis %= len(old)
    if old[axis] == 1:
        return
    found = labels.along(old, axis, np.arange(1, old[axis] + 1, dtype=np.int32))
    result = labels.reshape(found, new, lambda atoms, axes: pytest.fail("nothing to align"))
    assert result is not None
    assert np.array_equal(dense(result), dense(found).reshape(new))
    assert result.atoms.shape[result.axis] > 1


def test_reshape_aligns_places_before_it_merges_a_slower_axis():
    atoms = np.arange(1, 13, dtype=np.int32).reshape(4, 3)
    aligned = []

    def align(found, axes):
        aligned.append(axes)
        return found.take([0], axis=axes[0])

    result = labels.reshape(Labels((4, 3), atoms, 0), (12,), align)
    assert aligned == [(1,)]
    assert result.atoms.tolist() == np.repeat(atoms[:, 0], 3).tolist()


def test_union_settles_chains_and_cycles():
    union = Union()
    atoms = union.fresh(6)
    union.unite(atoms[[0, 1, 2, 3, 0]], atoms[[1, 2, 3, 0, 3]])
    assert len(set(union.find(atoms[:4]).tolist())) == 1
    assert union.find(atoms[4:]).tolist() == atoms[4:].tolist()


# --- what stays ------------------------------------------------------------------------------------------------------


def test_network_outputs_stay():
    net = Net()
    x = image(net)
    net.op_output(x)
    net.output("output", ["N", 16, 8, 8])
    coupling = analyse(ir.from_proto(net.proto()))
    assert coupling.groups == ()
    assert reasons(coupling) == {("Identity", "gives the network's output output")} or coupling.prunable_macs == 0


def test_an_unknown_operator_freezes_what_it_touches_and_is_named(prune):
    net = Net()
    x = net.op("Relu", net.conv(image(net), 16, 24))
    # Legal ONNX, but no rule: it sorts by value.
    places = net.op("GatherElements", x, net.op("Cast", net.op("Sign", net.op("Abs", x)), to=TensorProto.INT64), axis=3)
    pruned, coupling = prune(finish(net, net.conv(places, 24, 16), 16))
    assert ("GatherElements", "no rule knows this operator") in reasons(coupling)
    frozen = next(item for item in coupling.frozen if item.op_type == "GatherElements")
    assert frozen.channels == 24
    assert {len(group.atoms) for group in coupling.groups} == {16}
    assert pruned.graph.num_nodes() > 0


def test_subgraphs_freeze_what_they_read():
    net = Net()
    x = net.op("Relu", image(net))
    y = net.op("Relu", net.conv(x, 16, 8))
    then = helper.make_graph(
        [helper.make_node("Abs", [y], ["then"])], "t", [], [helper.make_tensor_value_info("then", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [y], ["other"])], "e", [], [helper.make_tensor_value_info("other", 1, None)]
    )
    condition = net.op("Greater", net.op("ReduceMax", net.input("c", [1]), keepdims=0), net.const(np.float32(0)))
    net.nodes.append(helper.make_node("If", [condition], ["chosen"], "choose", then_branch=then, else_branch=other))
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", "chosen"), 8)))
    assert ("If", "its subgraph reads this value") in reasons(coupling)
    assert [len(group.atoms) for group in coupling.groups if group.kind == "channels"] == [16]


@pytest.mark.parametrize(
    ("op", "attributes", "text"),
    [
        ("Softmax", {"axis": 1}, "Softmax mixes its channels"),
        ("LogSoftmax", {"axis": 1}, "LogSoftmax mixes its channels"),
        ("ReduceMax", {"axes": [1]}, "ReduceMax mixes its channels"),
        ("LRN", {"size": 3}, "LRN mixes its channels"),
    ],
)
def test_operators_that_mix_channels_freeze_them(op, attributes, text):
    net = Net()
    x = net.op(op, image(net), **attributes)
    x = net.op("Relu", net.conv(x, 1 if op == "ReduceMax" else 16, 8))
    coupling = analyse(ir.from_proto(finish(net, x, 8)))
    assert (op, text) in reasons(coupling)
    assert [len(group.atoms) for group in coupling.groups] == [8]


def test_addition_of_something_that_cannot_be_pruned_freezes():
    net = Net()
    x = net.op("Add", net.conv(net.input("x", ["N", 16, 8, 8]), 16, 16), "x")
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", net.conv(x, 16, 8)), 8)))
    assert ("Add", "meets a value without removable channels") in reasons(coupling)
    assert [len(group.atoms) for group in coupling.groups] == [8]


# --- weights used twice ----------------------------------------------------------------------------------------------


def test_one_convolution_used_at_two_places_is_cut_once_for_both(prune):
    net = Net()
    x = net.op("Relu", image(net, channels=64))
    weight, bias = net.weight(64, 64, 3, 3), net.vector(64)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, weight, bias, pads=[1] * 4))
    pruned, coupling = prune(finish(net, x, 64))
    assert len(coupling.groups) == 1, "input and output of the shared weight are one group"
    assert pruned.graph.initializers[weight].shape.numpy() == (32, 32, 3, 3)


def test_equal_small_vectors_that_an_exporter_stored_once_are_cut_apart(prune):
    net = Net()
    shared = net.vector(16)
    x = net.op("Relu", net.op("Conv", net.input("x", ["N", 3, 8, 8]), net.weight(16, 3, 3, 3), shared, pads=[1] * 4))
    x = net.op("Relu", net.op("Conv", x, net.weight(16, 16, 3, 3), shared, pads=[1] * 4))
    _, coupling = prune(finish(net, x, 16), share=0.25)
    assert [len(group.atoms) for group in coupling.groups] == [16, 16]


def test_a_tied_embedding_stays_tied_and_both_roles_lose_the_same_columns(run, difference):
    net = Net()
    hidden, words = 32, 2000
    ids = net.input("ids", ["N", "T"], TensorProto.INT64)
    table = net.weight(words, hidden, fan=1)
    x = net.op("Gather", table, ids)
    x = net.op("Add", x, net.linear(net.gelu(net.linear(net.norm(x, hidden), hidden, 64)), 64, hidden))
    proto = net.done(net.op("MatMul", net.norm(x, hidden), net.op("Transpose", table, perm=[1, 0])), ["N", "T", words])
    model = ir.from_proto(proto)
    coupling = analyse(model)
    group = next(group for group in coupling.groups if len(group.atoms) == hidden)
    assert {part.role for part in group.slices if part.initializer == table} == {"in", "out"}
    atoms = [atom for unit in coupling.choose(group, 12) for atom in unit.atoms]
    pruned = remove(model, coupling, atoms)
    assert pruned.graph.initializers[table].shape.numpy() == (words, 20)
    assert io.weight_bytes(pruned) < 0.7 * io.weight_bytes(model)
    feed = {"ids": np.random.default_rng(0).integers(0, words, (2, 7))}
    assert difference(run(pruned, feed), run(mask(model, coupling, atoms), feed)) <= 1e-5


# --- units and refusals ----------------------------------------------------------------------------------------------


def test_heads_go_whole_and_their_width_goes_evenly(zoo):
    model = zoo.load(zoo.vit())
    coupling = analyse(model)
    heads = next(group for group in coupling.groups if group.kind == "heads")
    width = next(group for group in coupling.groups if group.kind == "head_width")
    assert [len(unit.atoms) for unit in coupling.units(heads)] == [1] * 6
    assert [len(unit.atoms) for unit in coupling.units(width)] == [6] * 8
    with pytest.raises(SpecInvalidError, match="unequal length"):
        remove(model, coupling, width.atoms[:1])


def test_shared_keys_take_their_queries_with_them(zoo):
    model = zoo.load(zoo.decoder())
    coupling = analyse(model)
    heads = next(group for group in coupling.groups if group.kind == "heads")
    assert len(heads.atoms) == 4, "8 query heads read 4 key heads"
    query = next(part for part in heads.slices if part.axis == 1 and len(part.atoms) == 64)
    assert np.count_nonzero(query.atoms == heads.atoms[0]) == 16


def test_scores_decide_what_is_put_together(zoo):
    coupling = analyse(zoo.load(zoo.vit()))
    width = next(group for group in coupling.groups if group.kind == "head_width")
    scores = {atom: float(np.random.default_rng(atom).random()) for atom in width.atoms}
    first = coupling.units(width, scores)[0]
    for head in range(6):
        own = width.atoms[head * 8 : head * 8 + 8]
        assert set(first.atoms) & set(own) == {min(own, key=scores.get)}


def test_unit_costs_are_what_removal_saves(zoo):
    model = zoo.load(zoo.residual())
    coupling = analyse(model)
    group = coupling.groups[1]
    unit = coupling.units(group)[0]
    pruned = remove(model, coupling, unit.atoms)
    before, after = macs.total(model), macs.total(pruned)
    assert unit.macs == pytest.approx(before - after)
    count = {
        name: sum(value.const_value.size for value in found.graph.initializers.values())
        for name, found in (("a", model), ("b", pruned))
    }
    assert unit.parameters == pytest.approx(count["a"] - count["b"])


def test_choose_never_empties_an_axis_or_a_part(zoo):
    for name in ("shufflenet", "yolo", "vit", "channel_shuffle"):
        model = zoo.load(zoo.ZOO[name]())
        coupling = analyse(model)
        atoms: set[int] = set()
        for group in coupling.groups:
            units = coupling.choose(group, len(group.atoms), beside=atoms)
            atoms.update(atom for unit in units for atom in unit.atoms)
        pruned = remove(model, coupling, atoms)
        onnx.checker.check_model(ir.to_proto(pruned), full_check=True)


def test_removal_refuses_width_zero_and_strangers(zoo):
    model = zoo.load(zoo.residual())
    coupling = analyse(model)
    with pytest.raises(SpecInvalidError, match="width 0"):
        remove(model, coupling, coupling.groups[0].atoms)
    with pytest.raises(SpecInvalidError, match="cannot be removed"):
        remove(model, coupling, [10**6])


def test_removal_leaves_the_analysed_model_alone(zoo):
    model = zoo.load(zoo.residual())
    coupling = analyse(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    atoms = coupling.groups[0].atoms[:4]
    remove(model, coupling, atoms)
    mask(model, coupling, atoms)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# --- operators that the zoo has not ----------------------------------------------------------------------------------


def test_a_head_that_would_have_to_share_a_frozen_output_stays(zoo):
    """Keys that are also an output (a cache) keep their heads."""
    net = Net()
    x = net.input("x", ["N", 8, 16])
    q, k, v = (
        net.op("Transpose", net.op("Reshape", net.linear(x, 16, 16), net.ints(0, -1, 4, 4)), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Reshape", net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3]), net.ints(0, -1, 16))
    net.op_output(k, "cache")
    net.output("cache", ["N", 4, 8, 4])
    coupling = analyse(ir.from_proto(net.done(net.linear(y, 16, 3), ["N", 8, 3])))
    assert not [group for group in coupling.groups if group.kind == "heads"]
    assert [len(group.atoms) for group in coupling.groups] == [16], "the value's width may go"


def test_einsum_attention(prune):
    net = Net()
    heads, width, hidden = 4, 8, 32
    x = net.input("x", ["N", 6, 12])
    q, k, v = (net.op("Einsum", x, net.weight(12, heads, width, fan=12), equation="btc,chd->bthd") for _ in range(3))
    scores = net.op("Softmax", net.op("Einsum", q, k, equation="bthd,bshd->bhts"), axis=-1)
    y = net.op("Einsum", scores, v, equation="bhts,bshd->bthd")
    y = net.op("Einsum", y, net.weight(heads, width, hidden, fan=hidden), equation="bthd,hdo->bto")
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 6, 12)).astype(np.float32)}]
    _, coupling = prune(net.done(net.linear(net.op("Relu", y), hidden, 3), ["N", 6, 3]), feeds=feeds)
    assert {"ffn", "head_width"} <= {group.kind for group in coupling.groups}


def test_rotation_by_pairs_of_neighbours(prune):
    """Every second place by steps: what is left still alternates, or is picked."""
    net = Net()
    x = net.op("Relu", image(net))
    even = net.op("Slice", x, net.ints(0), net.ints(16), net.ints(1), net.ints(2))
    odd = net.op("Slice", x, net.ints(1), net.ints(16), net.ints(1), net.ints(2))
    prune(finish(net, net.conv(net.op("Concat", net.op("Neg", odd), even, axis=1), 16, 8), 8), share=0.4)


def test_old_operator_sets_keep_sizes_in_attributes(prune):
    net = Net(opset=11)
    x = net.op("Relu", image(net, channels=24))
    a, b = net.op("Split", x, axis=1, split=[16, 8], count=2)
    x = net.op("Concat", net.op("Relu", net.conv(a, 16, 8)), b, axis=1)
    x = net.op("Squeeze", net.op("ReduceMean", x, axes=[2], keepdims=1), axes=[2])
    x = net.op("Unsqueeze", x, axes=[3])
    pruned, _ = prune(finish(net, net.conv(x, 16, 8, 1), 8))
    split = next(node for node in pruned.graph if node.op_type == "Split")
    assert sum(split.attributes["split"].as_ints()) == 12


def test_grouped_transposed_convolution(prune):
    net = Net()
    x = net.op("Relu", image(net))
    x = net.op("ConvTranspose", x, net.weight(16, 6, 2, 2, fan=16), net.vector(12), strides=[2, 2], group=2)
    prune(finish(net, net.op("Relu", net.conv(x, 12, 8)), 8))


def test_depthwise_multiplier_takes_all_results_of_a_channel(prune):
    net = Net()
    x = net.op("Relu", image(net))
    x = net.op("Conv", x, net.weight(32, 1, 3, 3), net.vector(32), pads=[1] * 4, group=16)
    pruned, coupling = prune(finish(net, x, 32))
    assert [len(group.atoms) for group in coupling.groups] == [16]
    node = [node for node in pruned.graph if node.op_type == "Conv"][1]
    assert node.attributes["group"].as_int() == 8
    assert node.inputs[1].shape.numpy() == (16, 1, 3, 3)


def test_fused_convolution_adds_before_its_activation(prune):
    net = Net()
    x = net.op("Relu", image(net))
    x = net.op(
        "FusedConv", x, net.weight(16, 16, 3, 3), net.vector(16), x, domain=CONTRIB, activation="Relu", pads=[1] * 4, group=1,
        kernel_shape=[3, 3], strides=[1, 1], dilations=[1, 1],
    )  # fmt: skip
    _, coupling = prune(finish(net, x, 16))
    assert [len(group.atoms) for group in coupling.groups] == [16]


@pytest.mark.parametrize("packed", [False, True])
def test_standard_attention_and_rotation_as_operators(prune, packed):
    net = Net(opset=23)
    x = net.input("x", ["N", 6, 16])
    q, k, v = (net.linear(x, 16, size) for size in (32, 16, 16))
    if packed:
        table = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
        cos, sin = net.const(table), net.const(table + 1)
        places = net.op(
            "Expand", net.const(np.arange(6)[None]), net.op("Concat", net.op("Shape", x, end=1), net.ints(6), axis=0)
        )
        q, k = (net.op("RotaryEmbedding", part, cos, sin, places, num_heads=count) for part, count in ((q, 4), (k, 2)))
    y = net.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=2)
    proto = net.done(net.linear(net.op("Relu", net.linear(y, 32, 24)), 24, 3), ["N", 6, 3])
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)}]
    pruned, coupling = prune(proto, feeds=feeds, kinds={"heads"})
    assert [len(group.atoms) for group in coupling.groups if group.kind == "heads"] == [2]
    node = next(node for node in pruned.graph if node.op_type == "Attention")
    assert (node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) == (2, 1)


def test_sizes_written_into_resize_and_expand_follow(prune):
    net = Net()
    x = net.op("Relu", image(net))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 16, 16, 1))
    gate = net.op("Expand", gate, net.ints(1, 16, 8, 8))
    x = net.op("Mul", x, gate)
    sizes = net.op("Concat", net.op("Shape", x, end=1), net.ints(16, 12, 12), axis=0)
    x = net.op("Resize", x, "", "", sizes, mode="linear")
    prune(finish(net, net.op("Relu", net.conv(x, 16, 8)), 8))


def test_a_scale_computed_from_a_width_keeps_its_value(prune):
    """sqrt(width) read at run time must not follow the removed channels."""
    net = Net()
    x = net.op("Relu", image(net))
    width = net.op("Gather", net.op("Shape", x), net.const(np.int64(1)))
    scale = net.op("Sqrt", net.op("Cast", width, to=TensorProto.FLOAT))
    prune(finish(net, net.op("Relu", net.conv(net.op("Div", x, scale), 16, 8)), 8))


def test_a_quotient_of_dynamic_sizes_is_no_constant(run, difference):
    """Half a width and the width itself divide to 2 at every even size, and to something else at odd ones."""
    net = Net()
    wide = net.op("Relu", net.conv(net.input("x", ["N", 3, "H", "W"]), 3, 16))
    x = net.op("Relu", net.conv(wide, 16, 16, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    ratios = []
    for place in (2, 3):
        sizes = [
            net.op("Cast", net.op("Gather", net.op("Shape", part), net.ints(place)), to=TensorProto.FLOAT)
            for part in (wide, x)
        ]
        ratios.append(net.op("Div", *sizes))
    scales = net.op("Concat", net.const(np.ones(2, np.float32)), *ratios, axis=0)
    x = net.op("Add", wide, net.op("Resize", x, "", scales, mode="nearest"))
    proto = finish(net, net.op("Relu", net.conv(x, 16, 8)), 8)
    model = ir.from_proto(proto)
    coupling = analyse(model)
    atoms = [atom for group in coupling.groups for unit in coupling.choose(group, 4) for atom in unit.atoms]
    feeds = [
        {"x": np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)}
        for size in ((16, 16), (23, 14))
    ]
    assert difference(run(model, *feeds), run(ir.from_proto(proto), *feeds)) == 0
    assert difference(run(remove(model, coupling, atoms), *feeds), run(mask(model, coupling, atoms), *feeds)) <= 1e-5


def test_heads_and_channels_of_one_axis_go_together(run, difference):
    """A normalisation counts what both layers of labels keep: a channel and a block that overlap, or not."""
    net = Net()
    x = net.op("Tanh", image(net))
    y = net.op("InstanceNormalization", net.op("Reshape", x, net.ints(0, 1, -1)), net.vector(1), net.vector(1))
    y = net.op("Reshape", y, net.ints(0, 16, 8, 8))
    z = net.op("Transpose", net.op("Reshape", x, net.ints(-1, 4, 4, 8, 8)), perm=[0, 2, 1, 3, 4])
    x = net.op("Concat", net.op("Reshape", z, net.ints(-1, 16, 8, 8)), y, axis=1)
    model = ir.from_proto(finish(net, net.op("Relu", net.conv(x, 32, 8)), 8))
    coupling = analyse(model)
    channels = next(group for group in coupling.groups if group.kind == "channels" and len(group.atoms) == 4)
    blocks = next(group for group in coupling.groups if group.kind == "blocks")
    atoms = {*coupling.units(channels)[1].atoms, *coupling.units(blocks)[2].atoms}
    pruned = remove(model, coupling, atoms)
    assert pruned.graph.initializers["weight_1"].shape.numpy()[0] == 9, "a line and a column of a square of 4 x 4"
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    assert difference(run(pruned, feed), run(mask(model, coupling, atoms), feed)) <= 1e-5


def test_two_groupings_of_one_axis_both_stay_in_balance(prune):
    net = Net()
    x = net.op("Relu", net.conv(net.op("Relu", image(net, channels=32)), 32, 32, groups=2))
    _, coupling = prune(finish(net, net.op("Relu", net.conv(x, 32, 16, groups=4)), 16))
    middle = next(
        group
        for group in coupling.groups
        if len(group.producers) == 1 and len(group.atoms) == 32 and len(group.balance) > 1
    )
    assert {len(unit.atoms) for unit in coupling.units(middle)} == {4}


@pytest.mark.parametrize("name", ["residual", "vit", "group_norm_op", "lstm_ocr"])
def test_half_precision_networks(name, zoo, run, difference):
    proto = zoo.ZOO[name]()
    for number, tensor in enumerate(proto.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            proto.graph.initializer[number].CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model = ir.from_proto(proto)
    coupling = analyse(model)
    atoms = {
        atom
        for group in coupling.groups
        if group.kind != "head_width"
        for unit in coupling.choose(group, 2)
        for atom in unit.atoms
    }
    feed = {name: array.astype(np.float16) for name, array in zoo.feed(proto, 2).items()}
    pruned = remove(model, coupling, atoms)
    assert all(value.const_value.dtype != ir.DataType.FLOAT for value in pruned.graph.initializers.values())
    assert difference(run(pruned, feed), run(mask(model, coupling, atoms), feed)) <= 5e-3


def test_sequences_and_broken_uses_freeze_instead_of_failing():
    net = Net()
    x = net.op("Relu", net.conv(image(net), 16, 12))
    parts = net.op("SplitToSequence", x, axis=1)
    y = net.op("SequenceAt", parts, net.const(np.int64(0)))
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", net.conv(y, 1, 8)), 8)))
    assert ("SplitToSequence", "no rule knows this operator") in reasons(coupling)
    assert 16 in [len(group.atoms) for group in coupling.groups]


@pytest.mark.parametrize("fault", [KeyError("a fault of ours"), AssertionError(), AttributeError("x"), ValueError("y")])
def test_a_fault_in_a_rule_comes_through(monkeypatch, fault):
    def rule(run, node):
        raise fault

    monkeypatch.setitem(RULES, ("", "Relu"), rule)
    net = Net()
    proto = finish(net, net.op("Relu", image(net)), 16)
    with pytest.raises(type(fault)):
        analyse(ir.from_proto(proto))


def test_a_rule_that_cannot_follow_says_why(monkeypatch):
    def rule(run, node):
        raise UnfollowableError("its channels go through a spell")

    monkeypatch.setitem(RULES, ("", "Relu"), rule)
    net = Net()
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", image(net)), 16)))
    assert ("Relu", "its channels go through a spell") in reasons(coupling)


def test_a_bias_that_is_computed_keeps_the_channels():
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    bias = net.op("Mul", net.input("shift", [12]), net.const(np.float32(0.5)))
    x = net.op("Conv", x, net.weight(12, 3, 1, 1), bias)
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", x), 12)))
    assert ("Conv", "its parameters are computed") in reasons(coupling)
    assert 12 not in [len(group.atoms) for group in coupling.groups]


def test_a_part_of_size_zero_keeps_the_channels():
    net = Net()
    x = image(net)
    some, _none = net.op("Split", x, net.ints(16, 0), axis=1, count=2)
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", some), 16)))
    assert ("Split", "a size is zero") in reasons(coupling)


def test_a_reduction_over_an_empty_list_of_axes_reduces_all():
    net = Net(opset=18)
    x = image(net)
    total = net.op("ReduceMax", x, net.const(np.zeros(0, np.int64)), keepdims=1)
    coupling = analyse(ir.from_proto(finish(net, net.op("Add", net.op("Relu", x), total), 16)))
    assert ("ReduceMax", "ReduceMax mixes its channels") in reasons(coupling)


@pytest.mark.parametrize(
    ("op", "attributes", "opset", "outputs", "reason"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}, 17, 2, "places of its largest elements are read"),
        ("LayerNormalization", {}, 17, 2, "its statistics are read"),
    ],
)
def test_outputs_that_tell_of_all_channels_keep_them(op, attributes, opset, outputs, reason):
    net = Net(opset=opset)
    x = net.op("Relu", image(net))
    gain = [net.vector(8)] if op == "LayerNormalization" else []
    y, other = net.op(op, x, *gain, count=outputs, **attributes)
    total = net.op("ReduceMax", net.op("Cast", other, to=1))
    coupling = analyse(ir.from_proto(finish(net, net.op("Add", y, total), 16)))
    assert (op, reason) in reasons(coupling)


def test_channels_that_come_in_as_parameters_stay():
    """A normalisation whose gain is computed by a layer: labels are followed from its first input alone."""
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    gain = net.op("Reshape", net.linear(net.input("style", [1, 4]), 4, 8), net.ints(8))
    y = net.op("LayerNormalization", net.conv(x, 3, 12), gain)
    coupling = analyse(ir.from_proto(finish(net, net.op("Relu", y), 12)))
    assert ("LayerNormalization", "reads them where they are not followed") in reasons(coupling)
    assert 8 not in [len(group.atoms) for group in coupling.groups]


def test_declared_sizes_that_do_not_fit_keep_the_channels():
    """A shape that is computed from data: all that is known of the result is what the file says."""
    net = Net()
    y = net.op("Reshape", image(net), net.input("shape", [4], TensorProto.INT64))
    proto = finish(net, net.op("Relu", y), 16)
    proto.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["rows", 16, "high", "wide"]))
    coupling = analyse(ir.from_proto(proto))
    assert ("Reshape", "the sizes declared for its output do not fit those of its inputs") in reasons(coupling)


def test_inputs_that_are_initializers_and_functions_are_brought_into_form(prune):
    net = Net()
    x = net.op("Relu", image(net))
    proto = finish(net, net.op("Relu", net.conv(x, 16, 8)), 8)
    weight = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(weight.name, 1, list(weight.dims)))
    _, coupling = prune(proto)
    assert len(coupling.groups) == 2


# --- the result ------------------------------------------------------------------------------------------------------


def test_what_bert_keeps_and_its_residual_stream(zoo):
    coupling = analyse(zoo.load(zoo.bert()))
    assert coupling.prunable_macs > 0.9
    assert coupling.frozen[0] == Frozen("to_output", "Identity", "gives the network's output output", 4)
    stream = next(group for group in coupling.groups if group.kind == "hidden")
    assert stream.lossy
    assert len(stream.atoms) == 48


def test_more_than_a_hundred_operators_have_rules():
    assert len({name for _, name in RULES}) >= 100


def test_macs_of_known_layers():
    net = Net()
    x = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 16)
    x = net.gemm(net.op("Flatten", x), 16 * 64, 10)
    found = macs.count(ir.from_proto(net.done(x, ["N", 10])))
    assert sorted(found.values()) == [16 * 64 * 10, 16 * 3 * 9 * 64]


ANALYSE = """
import time
from pathlib import Path
import zoo
from engine.graph.coupling import analyse
model = zoo.load(zoo.densenet121())
assert len(list(model.graph)) >= 1700
started = time.process_time()
coupling = analyse(model)
assert time.process_time() - started < 10
assert coupling.prunable_macs > 0.95
# In kilobytes: the whole process, weights and test tools included. getrusage would count the process that started this one, too.
peak = next(line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
assert int(peak[1]) < 1 << 20, peak
"""


def test_a_densenet_of_1700_nodes_is_analysed_in_seconds_and_little_memory():
    """In a process of its own: the largest memory of this one is that of all tests before."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", ANALYSE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
