"""Channels that are zero as a whole go, whatever stands between them and who reads them; all others stay."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import SpecInvalidError
from engine.graph import io
from engine.prune.dead_channels import remove_dead_channels
from engine.runtime import sessions
from engine.target import Target


def run(model, feed):
    written = io.to_bytes(model)
    onnx.checker.check_model(written, full_check=True)
    return sessions.session(written, Target(), optimise=False).run(feed)["scores"]


@pytest.fixture
def remove(context, feeds_of, images):
    def made(net, output, shape):
        model = ir.from_proto(onnx.load_from_string(net.build(output, out_shape=shape)))
        feed = {"image": images(3).astype(np.float32) / 255}
        before = run(model, feed)
        told = remove_dead_channels(model, context(model, feeds_of(feed)))
        np.testing.assert_allclose(run(model, feed), before, rtol=0, atol=1e-5 * np.abs(before).max())
        sizes = {name: value.const_value.shape.numpy() for name, value in model.graph.initializers.items()}
        return told, sizes

    return made


def chain(network, bias, between):
    """stem (row 2 zero) -> between -> second -> pool."""
    net = network()
    x = net.conv("image", 3, 6, name="stem")
    net.weights["stem.w"][2] = 0
    net.weights["stem.b"][2] = bias
    x = between(net, x)
    y = net.relu(net.conv(x, 6, 4, name="second"))
    return net, net.op("Flatten", net.op("GlobalAveragePool", y)), ("n", 4)


@pytest.mark.parametrize(
    ("bias", "between", "goes"),
    [
        (0.0, lambda net, x: net.relu(x), True),
        (-0.3, lambda net, x: net.relu(x), True),  # the activation makes it zero
        (0.3, lambda net, x: net.relu(x), False),
        (0.0, lambda net, x: net.op("Tanh", x), True),
        (0.0, lambda net, x: net.op("Sigmoid", x), False),  # sigmoid(0) is not 0
        (0.0, lambda net, x: net.op("MaxPool", net.relu(x), kernel_shape=[2, 2]), True),
        (-9.0, lambda net, x: net.relu(net.norm(x, 6, name="bn")), True),
        (0.0, lambda net, x: net.op("LeakyRelu", x), True),
    ],
)
def test_a_zero_row_goes_where_what_it_makes_is_zero(network, remove, bias, between, goes):
    told, sizes = remove(*chain(network, bias, between))
    assert (told.channels == 1) == goes
    assert list(sizes["stem.w"]) == [5 if goes else 6, 3, 3, 3]
    assert list(sizes["second.w"]) == [4, 5 if goes else 6, 3, 3]


def test_a_dead_output_of_a_transposed_convolution_goes(network, remove):
    net = network()
    x = net.op("ConvTranspose", net.conv("image", 3, 6, name="stem"), net.normal("up.w", 6, 5, 2, 2), name="up")
    net.weights["up.w"][:, 1] = 0
    y = net.relu(net.conv(net.relu(x), 5, 4, name="second"))
    told, sizes = remove(net, net.op("Flatten", net.op("GlobalAveragePool", y)), ("n", 4))
    assert told.channels == 1
    assert list(sizes["up.w"]) == [6, 4, 2, 2]
    assert list(sizes["second.w"]) == [4, 4, 3, 3]


def test_a_channel_that_nobody_reads_goes(network, remove):
    net = network()
    x = net.op("Sigmoid", net.conv("image", 3, 6, name="stem"))
    y = net.relu(net.conv(x, 6, 4, name="second"))
    net.weights["second.w"][:, 1] = 0
    told, sizes = remove(net, net.op("Flatten", net.op("GlobalAveragePool", y)), ("n", 4))
    assert told.channels == 1
    assert told.parameters == 3 * 9 + 1 + 4 * 9
    assert list(sizes["stem.w"]) == [5, 3, 3, 3]


def test_a_residual_sum_loses_only_what_both_sides_lack(network, remove):
    net = network()
    x = net.relu(net.conv("image", 3, 6, name="stem"))
    branch = net.conv(x, 6, 6, name="branch")
    for name in ("stem", "branch"):
        net.weights[f"{name}.w"][4] = 0
        net.weights[f"{name}.b"][4] = 0
    net.weights["branch.w"][1] = 0
    net.weights["branch.b"][1] = 0
    y = net.relu(net.conv(net.op("Add", x, branch), 6, 4, name="last_conv"))
    told, sizes = remove(net, net.op("Flatten", net.op("GlobalAveragePool", y)), ("n", 4))
    assert told.channels == 1
    assert list(sizes["branch.w"]) == [5, 5, 3, 3]


def test_a_network_that_cannot_be_cut_keeps_its_shape(network, remove, monkeypatch):
    def fails(*_):
        raise SpecInvalidError("Two axes depend on each other.")

    monkeypatch.setattr("engine.prune.dead_channels.remove", fails)
    told, sizes = remove(*chain(network, 0.0, lambda net, x: net.relu(x)))
    assert told.reason == "the network cannot be cut: Two axes depend on each other."
    assert list(sizes["stem.w"]) == [6, 3, 3, 3]


def test_without_zeros_nothing_happens(network, remove):
    told, _ = remove(*chain(network, 0.1, lambda net, x: (net.weights["stem.w"].__setitem__(2, 1.0), x)[1]))
    assert told.reason == "no whole row or channel of weights is zero"
