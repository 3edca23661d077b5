"""Convolutional networks in float16 as CUDA's kernels run them fast: other operators, the same numbers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.graph import io
from engine.passes.float16 import Float16
from engine.report.values import Change
from engine.runtime import sessions
from engine.target import Target


def residual(network, *, channels=3, kernel=7, size=24):
    """A stem with pooling, one block with a shortcut of its own, one with strides, one whose shortcut is its input."""
    net = network()

    def block(x, before, after, stride, name):
        y = net.relu(net.conv(x, before, 8, 1, name=f"{name}_in"))
        y = net.conv(net.relu(net.conv(y, 8, 8, name=f"{name}_mid", stride=stride)), 8, after, 1, name=f"{name}_out")
        shortcut = x if before == after else net.conv(x, before, after, 1, stride=stride, name=f"{name}_short")
        return net.relu(net.op("Add", y, shortcut, name=f"{name}_sum"))

    x = net.relu(net.conv("image", channels, 8, kernel, name="stem", stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = block(block(block(x, 8, 16, 1, "first"), 16, 24, 2, "second"), 24, 24, 1, "third")
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    shape = ("n", channels, size, size)
    return net.build(flat, shape, ("n", 24))


def in_half(written, context, target):
    model = ir.from_proto(onnx.load_from_string(written))
    made = replace(context(io.copy(model), None), target=target)
    change = Float16(compute="half").apply(model, {}, made)
    assert isinstance(change, Change)
    serialized = io.to_bytes(model)
    onnx.checker.check_model(serialized, full_check=True)
    return serialized, change


def run(serialized, channels, size, count=3):
    image = np.random.default_rng(5).standard_normal((count, channels, size, size)).astype(np.float32)
    return sessions.session(serialized, Target()).run({"image": image})["scores"]


def counted(serialized):
    return Counter(node.op_type for node in onnx.load_from_string(serialized).graph.node)


@pytest.mark.parametrize(("channels", "kernel", "wide"), [(3, 7, 16), (3, 3, 16), (1, 5, 8), (4, 2, 16)])
def test_the_same_numbers_by_fewer_passes_over_maps(network, context, channels, kernel, wide):
    written = residual(network, channels=channels, kernel=kernel)
    plain, _ = in_half(written, context, Target())
    suited, change = in_half(written, context, Target(provider="cuda", batch=32))
    expected = run(written, channels, 24)
    noise = np.abs(run(plain, channels, 24) - expected).max()
    assert np.abs(run(suited, channels, 24) - expected).max() <= 2 * noise + 1e-3 * np.abs(expected).max()
    # Two of three sums were of two convolutions.
    assert counted(plain)["Add"] - counted(suited)["Add"] == 2
    assert counted(plain)["Conv"] - counted(suited)["Conv"] == 2
    model = onnx.load_from_string(suited)
    made = {name: node for node in model.graph.node for name in node.output}
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    assert made[pool.input[0]].op_type == "Conv"
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert weights[made[pool.input[0]].input[1]][1] == wide
    assert set(weights) == {name for node in model.graph.node for name in node.input if name in weights}
    assert "blocks of 2x2 pixels" in change.summary
    assert "2 sums" in change.summary


@pytest.mark.parametrize("size", [25, "h"])
def test_a_first_convolution_whose_image_has_no_even_size_stays(network, context, size):
    suited, change = in_half(residual(network, size=size), context, Target(provider="cuda", batch=32))
    assert "Transpose" not in counted(suited)
    assert "blocks" not in change.summary


def test_few_samples_and_other_targets_keep_their_operators(network, context):
    written = residual(network)
    plain, _ = in_half(written, context, Target())
    for target in (Target(provider="cuda"), Target(provider="tensorrt", batch=32)):
        assert counted(in_half(written, context, target)[0]) == counted(plain)
