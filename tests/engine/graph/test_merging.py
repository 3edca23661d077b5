"""Equal constants are stored once, whoever made the copies; the network in memory keeps its own."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io, verify
from engine.graph.merging import merged
from engine.graph.preparation import prepare
from engine.graph.unshare import unshare
from engine.target import Target


@pytest.fixture
def tower(network):
    """Four convolutions that share their weights and one that has equal ones under another name."""

    def make():
        net = network()
        w = net.normal("w", 8, 8, 3, 3, scale=0.1)
        x = net.conv("image", 3, 8, name="stem")
        for number in range(4):
            x = net.relu(net.op("Conv", x, w, pads=[1] * 4, name=f"shared{number}"))
        twin = net.weight("twin", net.weights["w"].copy())
        return net.build(net.op("Conv", x, twin, pads=[1] * 4, name="equal"), out_shape=("n", 8, 12, 12))

    return make


@pytest.mark.parametrize("copying", [unshare, prepare])
def test_copies_that_a_pass_makes_are_not_stored(tower, images, tmp_path, copying):
    before = tower()
    model = ir.from_proto(onnx.load_model_from_string(before))
    copying(model)
    weights = [node.inputs[1] for node in model.graph if node.op_type == "Conv"]
    assert len(set(weights[1:])) == 5, "every convolution has its own"
    io.save(model, tmp_path / "saved.onnx")
    assert len({node.inputs[1] for node in model.graph if node.op_type == "Conv"}) == 6, "the network in memory stays"
    stored = onnx.load(tmp_path / "saved.onnx")
    assert sum(list(tensor.dims) == [8, 8, 3, 3] for tensor in stored.graph.initializer) == 1
    assert (tmp_path / "saved.onnx").stat().st_size < len(before)
    feeds = [{"image": images(2).astype(np.float32)}]
    assert verify.same_outputs(before, stored.SerializeToString(), feeds, Target()).relative == 0


def test_external_data_are_written_once(tower, tmp_path, monkeypatch):
    from engine.graph import io as io_module

    monkeypatch.setattr(io_module, "SINGLE_FILE_BYTES", 1 << 10)
    model = ir.from_proto(onnx.load_model_from_string(tower()))
    unshare(model)
    io.save(model, tmp_path / "large.onnx")
    weights = 4 * 8 * 8 * 9
    assert weights <= (tmp_path / "large.data").stat().st_size < 2 * weights
    # Read back from disk, equal ones are found there too.
    again = io.load(tmp_path / "large.onnx")
    unshare(again)
    assert sum(len(graph.initializers) for graph in merged(again).graphs()) == sum(
        len(graph.initializers) for graph in io.load(tmp_path / "large.onnx").graphs()
    )


def test_what_is_no_copy_stays():
    numbers = np.arange(64, dtype=np.float32)
    held = {
        "a": numbers,
        "b": numbers.copy(),
        "given": numbers.copy(),  # a caller may replace it
        "shown": numbers.copy(),  # it is an output
        "wide": numbers.reshape(8, 8),
        "bits": numbers.view(np.int32),
        "zero": np.zeros(64, np.float32),
        "minus": -np.zeros(64, np.float32),
    }
    flat = [helper.make_node("Reshape", [name, "all"], [f"{name}_flat"]) for name in held if name != "bits"]
    flat.append(helper.make_node("Cast", ["bits"], ["bits_flat"], to=TensorProto.FLOAT))
    names = [f"{name}_flat" for name in held]
    graph = helper.make_graph(
        [*flat, helper.make_node("Sum", names, ["y"])],
        "g",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in ("y", "shown")],
        [numpy_helper.from_array(array, name) for name, array in {**held, "all": np.array([-1])}.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert set(merged(model).graph.initializers) == {*held, "all"} - {"b"}
    assert "b" in model.graph.initializers
    assert merged(merged(model)) is not model


def test_a_network_without_copies_is_given_as_it_is(residual_cnn):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    assert merged(model) is model
