"""The network of a point: what it is made of, what it goes on from, and what is said where it cannot be made."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import ModelUnsupportedError, SpecInvalidError
from engine.goal import Space
from engine.graph import io, macs, quantized
from engine.runtime import sessions
from engine.search.architecture import Architecture
from engine.search.candidate import make, rest_of
from engine.search.values import Point
from engine.target import Target

HALF = {"channels:stem": 8, "channels:b1": 16, "channels:short": 16}


@pytest.fixture
def cnn(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def found(cnn):
    return Architecture.of(cnn, Space(), Target())


@pytest.fixture
def tools(cnn, images, feeds_of, context):
    return context(cnn, feeds_of({"image": images(48)}))


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def shapes(model):
    return {name: array.shape for name, array in weights(model).items()}


def test_blocks_widths_and_ranks_go_together(cnn, found, tools):
    point = Point(dropped=("add1",), widths={"channels:stem": 8}, ranks={"b2": 8})
    made = make(cnn, point, found, tools)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    names = {node.name for node in made.model.graph}
    assert {"b2_down", "b2_core", "b2"} <= names
    assert not {"a1", "a2", "add1"} & names
    assert weights(made.model)["stem.w"].shape == (8, 3, 3, 3)
    assert made.macs == macs.total(made.model) == found.macs_at(point)
    assert {node.name for node in cnn.graph} >= {"a1", "b2"}  # the original is as it was


def test_quantized_points_hold_integers_but_where_they_should_not(cnn, found, tools):
    made = make(cnn, Point(widths=HALF, precision="static", in_float=("head",)), found, tools)
    assert quantized.first_quantized(made.model) is not None
    assert made.model.graph.initializers["head.w"].const_value.dtype == ir.DataType.FLOAT
    # Integers count as much as the floats that they stand for.
    assert made.macs == make(cnn, Point(widths=HALF), found, tools).macs


def test_a_wider_network_is_cut_further(cnn, found, tools, images):
    wide = make(cnn, Point(widths={"channels:stem": 12, "channels:b1": 24}), found, tools).model
    # As if it had been trained since.
    value = wide.graph.initializers["head.b"]
    value.const_value = ir.tensor(value.const_value.numpy() + 1e4, name="head.b")
    made = make(cnn, Point(widths=HALF), found, tools, inherited=wide)
    afresh = make(cnn, Point(widths=HALF), found, tools)
    assert made.left_out == ()
    assert shapes(made.model) == shapes(afresh.model)
    # The layers are refitted to the network that it goes on from, and not to the original.
    image = {"image": images(4, seed=9).astype(np.float32)}
    said = [sessions.session(io.to_bytes(each.model), Target()).run(image)["scores"] for each in (made, afresh)]
    assert (said[0] - said[1]).mean() == pytest.approx(1e4, rel=0.1)
    # What is the same already goes on as it is.
    same = make(cnn, Point(widths=HALF), found, tools, inherited=made.model)
    assert all(np.array_equal(array, weights(made.model)[name]) for name, array in weights(same.model).items())


def test_the_rest_of_a_point_is_what_is_not_done_yet(cnn, found, tools):
    point = Point(dropped=("add1",), widths={"channels:stem": 8}, ranks={"b2": 8})
    model = make(cnn, point, found, tools).model
    assert rest_of(model, point, found) == Point()
    more = Point(dropped=("add1",), widths={"channels:stem": 4, "channels:short": 16}, ranks={"b1": 8, "b2": 8})
    rest = rest_of(model, more, found)
    assert rest == Point(widths={"channels:stem": 4, "channels:short": 16}, ranks={"b1": 8})


def test_what_cannot_be_inherited_is_said_and_made_of_the_original(cnn, found, tools):
    thin = make(cnn, Point(dropped=("add1",), widths=HALF, ranks={"b2": 8}), found, tools).model
    for point, said in (
        (Point(widths=HALF), "has lost the branch of `add1`"),
        (Point(dropped=("add1",), widths=HALF), "layer `b2` of the network to go on from is split"),
        (Point(dropped=("add1",), ranks={"b2": 8}), "has 8 of `channels:stem`, and this one 16"),
    ):
        assert said in rest_of(thin, point, found)
    made = make(cnn, Point(widths=HALF), found, tools, inherited=thin)
    assert made.left_out == (
        "It goes on from the original: the network to go on from has lost the branch of `add1`, which this one keeps.",
    )
    assert shapes(made.model) == shapes(make(cnn, Point(widths=HALF), found, tools).model)
    integers = make(cnn, Point(precision="static"), found, tools).model
    assert "is quantized" in rest_of(integers, Point(), found)


def test_what_a_point_is_made_of_cannot_be_left_out(cnn, found, tools):
    with pytest.raises(SpecInvalidError, match="No group of channels"):
        make(cnn, Point(widths={"channels:nobody": 3}), found, tools)
    everything = tuple(found.layers)
    with pytest.raises(ModelUnsupportedError, match=r"^quantize_static: "):
        make(cnn, Point(precision="static", in_float=everything), found, tools)


def test_the_same_point_twice_is_the_same_network(cnn, found, tools):
    point = found.uniform(0.5, dropped=("add1",))
    first, second = (io.to_bytes(make(cnn, point, found, tools).model) for _ in range(2))
    assert first == second
