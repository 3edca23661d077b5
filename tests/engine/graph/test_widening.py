"""16-bit networks: widened they give the same within 16-bit rounding, narrowed again they hold the very same weights."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from engine import Compress, run
from engine.errors import BaselineFailedError
from engine.graph import io
from engine.graph.widening import widen
from engine.report.run_facts import Memory
from engine.runtime.sessions import session
from engine.target import Target


def _half(*, kind=TensorProto.FLOAT16, body=False):
    """A table, a layer behind a cast of its weights, and one of plain 16-bit weights; inputs and outputs are 16-bit."""
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {
        "table": random.normal(size=(64, 32)), "w": random.normal(size=(32, 64)) / 6, "v": random.normal(size=(64, 32)) / 8,
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "look"),
        helper.make_node("Add", ["rows", "x"], ["sum"], "sum"),
        helper.make_node("MatMul", ["sum", "w"], ["a"], "first"),
        helper.make_node("Cast", ["a"], ["wide"], "up", to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["share"], "share"),
        helper.make_node("Cast", ["share"], ["narrow"], "down", to=kind),
        helper.make_node("MatMul", ["narrow", "v"], ["y"], "second"),
    ]
    if body:
        branches = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node(op, ["y0"], [name], name)],
                name,
                [],
                [helper.make_tensor_value_info(name, kind, None)],
            )
            for name, op in (("then", "Relu"), ("else", "Neg"))
        }
        nodes[-1].output[0] = "y0"
        nodes.append(helper.make_node("If", ["flag"], ["y"], "choose", **branches))
    arrays = [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()]
    arrays.append(numpy_helper.from_array(np.array(True), "flag"))
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("x", kind, ["n", 32]),
        ],
        [helper.make_tensor_value_info("y", kind, ["n", 32])],
        arrays if body else arrays[:-1],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def _feed(count=6):
    random = np.random.default_rng(1)
    return {"ids": random.integers(0, 64, count), "x": random.normal(size=(count, 32)).astype(np.float16)}


@pytest.mark.parametrize("body", [False, True])
def test_a_widened_network_computes_the_same_in_floats(body):
    before = _half(body=body)
    model = ir.from_proto(before)
    widen(model)
    assert {value.dtype for _, value in io.initializers(model)} <= {ir.DataType.FLOAT, ir.DataType.BOOL}
    onnx.checker.check_model(io.to_bytes(model), full_check=True)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    # Only the boundary is cast: what went to float32 and back stays there.
    assert [node.attributes["to"].as_int() for node in casts] == [TensorProto.FLOAT, TensorProto.FLOAT16]
    one, other = (
        session(each, Target()).run(_feed())["y"] for each in (before.SerializeToString(), io.to_bytes(model))
    )
    assert one.dtype == other.dtype == np.float16
    np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=4e-3)


@pytest.mark.parametrize(("number", "fits"), [(0.1, True), (1e6, False)])
def test_narrowed_again_it_holds_the_same_weights_and_changed_ones_rounded(number, fits):
    before = _half()
    model = ir.from_proto(before)
    widened = widen(model)
    model.graph.initializers["v"].const_value = ir.tensor(np.full((64, 32), number, np.float32), name="v")
    assert widened.narrow(model) == 2 + fits
    stored = {str(value.name).split("_float16")[0]: value.const_value for _, value in io.initializers(model)}
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    for name in ("table", "w"):
        np.testing.assert_array_equal(stored[name].numpy(), originals[name])
        assert stored[name].dtype == ir.DataType.FLOAT16
    assert stored["v"].dtype == (ir.DataType.FLOAT16 if fits else ir.DataType.FLOAT)
    np.testing.assert_allclose(stored["v"].numpy().astype(np.float32), np.float32(number), rtol=1e-3)
    onnx.checker.check_model(io.to_bytes(model), full_check=True)
    assert session(io.to_bytes(model), Target()).run(_feed())["y"].dtype == np.float16


def test_networks_of_32_bits_are_left_alone(residual_cnn):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    assert not widen(model).weights
    assert "Cast" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("name", ["residual", "yolo", "bert", "vit_fused_qkv", "decoder"])
@pytest.mark.parametrize("keep_io", [False, True])
def test_networks_as_another_tool_narrows_them_come_through(zoo, name, keep_io):
    half = convert_float_to_float16(zoo.ZOO[name](), keep_io_types=keep_io)
    feed = zoo.feed(zoo.ZOO[name]())
    model = ir.from_proto(half)
    widened = widen(model)
    wide = io.to_bytes(model)
    assert widened.narrow(model) > 0
    original, one, other = (
        session(each, Target()).run(feed) for each in (half.SerializeToString(), wide, io.to_bytes(model))
    )
    for output, wanted in original.items():
        assert one[output].dtype == other[output].dtype == wanted.dtype
        scale = np.abs(wanted.astype(np.float64)).max()
        np.testing.assert_allclose(one[output].astype(np.float64), wanted.astype(np.float64), atol=2e-2 * scale)
        np.testing.assert_allclose(one[output].astype(np.float64), other[output].astype(np.float64), atol=1e-3 * scale)


@pytest.fixture
def job(workspace, short_measurements):
    def make(model, step):
        folder = workspace(model.SerializeToString(), **_feed(40))
        gates = [{"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}]
        spec = Compress.model_validate({"recipe": {"passes": [step]}, "gates": gates})
        probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
        return run(spec, folder, lambda _event: None, probe=lambda *_: probe), onnx.load(folder / "out" / "model.onnx")

    return make


def test_a_16_bit_network_is_quantized(job):
    report, result = job(_half(), {"type": "quantize_weights", "bits": 8, "operators": ["MatMul"]})
    (step,) = report.steps
    assert step.status == "applied", step.refusal
    assert [layer.node for layer in step.change.details.layers] == ["first", "second"]
    # The table was not asked for, and is stored as before.
    assert [tensor.dims for tensor in result.graph.initializer if tensor.data_type == TensorProto.FLOAT16] == [[64, 32]]
    assert {value.name: value.type.tensor_type.elem_type for value in (*result.graph.input, *result.graph.output)} == {
        "ids": TensorProto.INT64, "x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16,
    }  # fmt: skip
    assert report.size.compressed < report.size.original


def test_bfloat16_that_the_target_does_not_run_is_refused_in_words(job):
    with pytest.raises(BaselineFailedError, match="no kernel") as caught:
        job(_half(kind=TensorProto.BFLOAT16), {"type": "quantize_weights"})
    assert "bfloat16" in caught.value.hint
