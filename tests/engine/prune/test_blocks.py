"""Which residual branches are found, and what removing one leaves."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.graph import io
from engine.prune.blocks import drop, find_blocks, without
from engine.runtime import sessions
from engine.target import Target


def run(model, feed):
    written = io.to_bytes(model)
    onnx.checker.check_model(written, full_check=True)
    return sessions.session(written, Target(), optimise=False).run(feed)


def image(count=2):
    return np.random.default_rng(3).standard_normal((count, 3, 12, 12)).astype(np.float32)


def test_a_branch_with_its_own_weights_is_found(residual_cnn):
    blocks = find_blocks(ir.from_proto(onnx.load_from_string(residual_cnn())))
    # add2 has a convolution on its shortcut: neither side is computed from the other, the longer one may go.
    assert [block.name for block in blocks.found] == ["add1", "add2"]
    assert {node.name for node in blocks.found[0].nodes if node.op_type == "Conv"} == {"a1", "a2"}
    assert blocks.found[0].parameters == 2 * (16 * 16 * 9 + 16)


@pytest.mark.parametrize("swapped", [False, True])
def test_removal_gives_what_a_branch_of_zeros_gives(network, swapped):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    branch = net.conv(net.relu(net.conv(x, 8, 8, name="one")), 8, 8, name="two")
    total = net.op("Add", *((x, branch) if swapped else (branch, x)), name="sum")
    output = net.op("Flatten", net.op("GlobalAveragePool", net.relu(total)))
    model = ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 8))))
    (block,) = find_blocks(model).found
    silent = io.copy(model)
    for name in ("two.w", "two.b"):
        value = silent.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    thinner = without(model, {block.output: block.skip})
    assert {node.op_type for node in thinner.graph} == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Identity"}
    assert set(thinner.graph.initializers) == {"stem.w", "stem.b"}
    assert len(model.graph.initializers) == 6  # the original is as it was
    for count in (1, 3):
        expected, found = run(silent, {"image": image(count)}), run(thinner, {"image": image(count)})
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


def test_what_was_rectified_before_the_block_is_not_rectified_again(network):
    net = network()
    x = net.relu(net.conv("image", 3, 8, name="stem"))
    branch = net.conv(net.relu(net.conv(x, 8, 8, name="one")), 8, 8, name="two")
    output = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.op("Add", x, branch, name="sum"))))
    model = ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 8))))
    (block,) = find_blocks(model).found
    thinner = without(model, {block.output: block.skip})
    assert [node.op_type for node in thinner.graph if node.op_type in {"Conv", "Relu"}] == ["Conv", "Relu"]
    silent = io.copy(model)
    for name in ("two.w", "two.b"):
        value = silent.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    expected, found = run(silent, {"image": image()}), run(thinner, {"image": image()})
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_shortcut_that_changes_the_shape_is_what_stays(network, swapped):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    branch = net.conv(net.relu(net.conv(x, 8, 16, stride=2, name="one")), 16, 16, name="two")
    shortcut = net.norm(net.conv(x, 8, 16, 1, stride=2, name="down"), 16, name="scaled")
    total = net.op("Add", *((shortcut, branch) if swapped else (branch, shortcut)), name="sum")
    output = net.op("Flatten", net.op("GlobalAveragePool", net.relu(total)))
    model = ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 16))))
    (block,) = find_blocks(model).found
    assert {node.name for node in block.nodes if node.op_type == "Conv"} == {"one", "two"}
    silent = io.copy(model)
    for name in ("two.w", "two.b"):
        value = silent.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    thinner = without(model, {block.output: block.skip})
    assert {node.name for node in thinner.graph if node.op_type == "Conv"} == {"stem", "down"}
    expected, found = run(silent, {"image": image()}), run(thinner, {"image": image()})
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-6)


def test_sums_of_equals_and_of_levels_of_a_pyramid_stay(network):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    equal = net.op("Add", net.conv(x, 8, 8, name="left"), net.conv(x, 8, 8, name="right"), name="equal")
    deep = net.conv(net.relu(net.conv(equal, 8, 8, stride=2, name="down")), 8, 8, name="deep")
    scales = net.weight("scales", np.array([1, 1, 2, 2], np.float32))
    up = net.op("Resize", deep, "", scales, name="up", mode="nearest")
    level = net.op("Add", net.conv(equal, 8, 8, 1, name="lateral"), up, name="level")
    output = net.op("Flatten", net.op("GlobalAveragePool", net.relu(level)))
    assert find_blocks(ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 8))))).found == []


def test_a_branch_that_others_read_stays(network):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    inner = net.relu(net.conv(x, 8, 8, name="one"))
    total = net.op("Add", x, net.conv(inner, 8, 8, name="two"), name="sum")
    joined = net.op("Concat", total, inner, axis=1)
    output = net.op("Flatten", net.op("GlobalAveragePool", joined))
    blocks = find_blocks(ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 16)))))
    assert not blocks.found
    assert blocks.refused == {"sum": "a part of it is needed elsewhere"}


def test_a_formula_is_no_branch(network):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    # The cubic term of GELU's approximation: it has no weights to save.
    cubic = net.op("Mul", net.op("Mul", x, x), net.op("Mul", x, net.weight("c", np.float32(0.04))))
    output = net.op("Flatten", net.op("GlobalAveragePool", net.op("Add", x, cubic, name="sum")))
    blocks = find_blocks(ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 8)))))
    assert not blocks.found
    assert not blocks.refused


def test_a_sum_that_widens_its_input_or_is_an_output_stays():
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weights = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    square = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="widen"),
        helper.make_node("Add", ["x", "h"], ["s"], name="wide"),
        helper.make_node("MatMul", ["s", "v"], ["t"], name="square"),
        helper.make_node("Add", ["s", "t"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", ["n", 1])],
        [info("y", ["n", 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in (("w", weights), ("v", square))],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    blocks = find_blocks(model)
    assert not blocks.found
    assert blocks.refused == {"last": "it gives an output of the network"}


def test_a_branch_inside_of_a_dropped_one_goes_with_it(network):
    net = network()
    x = net.conv("image", 3, 8, name="stem")
    first = net.relu(net.conv(x, 8, 8, name="outer"))
    inner = net.op("Add", first, net.conv(first, 8, 8, name="inner"), name="small")
    total = net.op("Add", x, inner, name="large")
    output = net.op("Flatten", net.op("GlobalAveragePool", total))
    model = ir.from_proto(onnx.load_from_string(net.build(output, out_shape=("n", 8))))
    blocks = find_blocks(model).found
    assert [block.name for block in blocks] == ["small", "large"]
    drop(model, {block.output: block.skip for block in reversed(blocks)})
    assert set(model.graph.initializers) == {"stem.w", "stem.b"}
    run(model, {"image": image()})
