import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.calibrate import MinMax
from engine.errors import VerificationFailedError
from engine.graph import io, verify
from engine.passes.float16 import Float16
from engine.report.values import Change
from engine.target import Target


def noise(shape, seed, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def vision(tools, *, opset=17):
    """Convolutions, Resize with scales that float16 cannot hold, a float constant in a node, integer arithmetic."""
    weights = {
        "w1": noise((16, 3, 3, 3), 0, 0.2),
        "b1": noise(16, 1),
        "w2": noise((8, 16, 3, 3), 2, 0.1),
        "scales": np.array([1, 1, 1.7, 1.7], np.float32),
        "roi": np.array([], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["half"], name="constant", value=numpy_helper.from_array(np.float32(0.5))),
        helper.make_node("Mul", ["c1", "half"], ["m"], name="scale"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Resize", ["r", "roi", "scales"], ["z"], name="resize", mode="linear"),
        helper.make_node("Conv", ["z", "w2"], ["y"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["y"], ["s"], name="shape"),
    ]
    outputs = {"y": ["n", 8, "h", "w"], "s": (TensorProto.INT64, [4])}
    return tools.build(nodes, {"x": ["n", 3, 10, 10]}, outputs, weights, opset=opset)


def image(rows=2):
    return {"x": noise((rows, 3, 10, 10), 5)}


def ranges(tools, model, step, feed):
    """Observe what the pass asks for, as the pipeline would."""
    asked = step.observes(model)
    tapped = io.copy(model)
    values = {value.name: value for node in tapped.graph for value in node.outputs}
    outputs = {value.name for value in tapped.graph.outputs}
    tapped.graph.outputs.extend(values[request.tensor] for request in asked if request.tensor not in outputs)
    from engine.runtime import sessions

    found = sessions.session(io.to_bytes(tapped), Target()).run(feed)
    results = {}
    for request in asked:
        statistic = MinMax()
        statistic.update(found[request.tensor])
        results[request] = statistic.result()
    return results


def apply(tools, model, feed=None, **parameters):
    step = Float16(**parameters)
    step.prepare(model)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    observations = ranges(tools, model, step, feed) if feed is not None else {}
    outcome = step.apply(model, observations, tools.context(io.copy(model)))
    if isinstance(outcome, Change):
        step.ensures(model)
    return outcome


def agree(tools, model, reference, feed, least):
    for optimise in (False, True):
        found = tools.run(model, feed, optimise=optimise)
        for name, value in reference.items():
            assert found[name].dtype == value.dtype
            assert tools.sqnr(value, found[name]) > least


def bytes_of(model):
    return io.weight_bytes(model)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 60), ("bfloat16", 40)])
def test_storage_halves_the_weights_and_leaves_the_operators_alone(tools, dtype, least):
    model = vision(tools)
    before, reference = bytes_of(model), tools.run(model, image())
    change = apply(tools, model, dtype=dtype)
    assert change.details.compute == "float32"
    assert bytes_of(model) < 0.55 * before
    agree(tools, model, reference, image(), least)
    assert not verify_half(model)


def verify_half(model, tmp=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        io.save(model, path)
        return verify.computes_in_half(path)


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_half_computes_and_sizes_stay_exact(tools, opset):
    model = vision(tools, opset=opset)
    reference = tools.run(model, image())
    change = apply(tools, model, image(), compute="half")
    assert change.details.overflow_checked
    found = tools.run(model, image())
    assert found["y"].shape == reference["y"].shape
    agree(tools, model, reference, image(), 50)
    resize = next(node for node in model.graph if node.op_type == "Resize")
    assert resize.inputs[2].dtype == ir.DataType.FLOAT
    assert resize.inputs[0].dtype == ir.DataType.FLOAT16
    assert verify_half(model)
    assert tools.run(model, image(1))["y"].shape[0] == 1


def test_inputs_and_outputs_become_half_only_when_asked(tools):
    kept, changed = vision(tools), vision(tools)
    apply(tools, kept, compute="half")
    assert (kept.graph.inputs[0].dtype, kept.graph.outputs[0].dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    reference = tools.run(vision(tools), image())["y"]
    apply(tools, changed, compute="half", keep_io=False)
    assert [value.name for value in changed.graph.outputs] == ["y", "s"]
    found = tools.run(changed, {"x": image()["x"].astype(np.float16)})
    assert found["y"].dtype == np.float16
    assert found["s"].dtype == np.int64
    assert tools.sqnr(reference, found["y"]) > 50


def test_values_beyond_the_range_stay_in_float32(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "big"], ["b"], name="grow"),
        helper.make_node("Mul", ["b", "small"], ["c"], name="shrink"),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="second"),
    ]
    arrays = {
        "w1": noise((32, 32), 0), "w2": noise((32, 32), 1),
        "big": np.float32(30000), "small": np.float32(1 / 30000),
    }  # fmt: skip
    model = tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, arrays)
    feed = {"x": noise((4, 32), 2)}
    reference = tools.run(model, feed)
    change = apply(tools, model, feed, compute="half")
    left = {entry.node: entry.reason for entry in change.details.in_float32}
    assert left.keys() == {"grow", "shrink"}
    assert "reached" in left["grow"]
    agree(tools, model, reference, feed, 50)


def test_epsilons_and_what_divides_by_them_stay_in_float32(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("ReduceMean", ["h"], ["mean"], name="mean", axes=[-1]),
        helper.make_node("Sub", ["h", "mean"], ["d"], name="centre"),
        helper.make_node("Mul", ["d", "d"], ["q"], name="square"),
        helper.make_node("ReduceMean", ["q"], ["v"], name="variance", axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["e"], name="guard"),
        helper.make_node("Sqrt", ["e"], ["s"], name="root"),
        helper.make_node("Div", ["d", "s"], ["y"], name="divide"),
    ]
    model = tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, {"w": noise((32, 32), 0), "eps": np.float32(1e-12)})
    feed = {"x": np.concatenate([noise((3, 32), 1), np.zeros((1, 32), np.float32)])}
    reference = tools.run(model, feed)
    change = apply(tools, model, feed, compute="half")
    assert {entry.node for entry in change.details.in_float32} == {"guard", "root", "divide"}
    assert np.isfinite(tools.run(model, feed)["y"]).all()
    agree(tools, model, reference, feed, 45)


def test_mask_constants_do_not_become_infinite(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="scores"),
        helper.make_node("Where", ["mask", "scores", "low"], ["masked"], name="hide"),
        helper.make_node("Softmax", ["masked"], ["y"], name="softmax", axis=-1),
    ]
    arrays = {"w": noise((32, 16), 0), "low": np.float32(-3.4028235e38)}
    model = tools.build(nodes, {"x": ["n", 32], "mask": (TensorProto.BOOL, ["n", 16])}, {"y": ["n", 16]}, arrays)
    mask = np.arange(16)[None].repeat(3, 0) < np.array([[16], [5], [0]])
    feed = {"x": noise((3, 32), 1), "mask": mask}
    reference = tools.run(model, feed)
    apply(tools, model, feed, compute="half")
    agree(tools, model, reference, feed, 45)


def test_shape_arithmetic_in_float_stays_exact(tools):
    """A size above 2048 would be rounded by float16."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Cast", ["shape"], ["f"], name="to_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "factor"], ["g"], name="grow"),
        helper.make_node("Floor", ["g"], ["h"], name="floor"),
        helper.make_node("Cast", ["h"], ["size"], name="to_size", to=TensorProto.INT64),
        helper.make_node("Expand", ["one", "size"], ["grown"], name="expand"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    arrays = {
        "factor": np.array([1, 1.5], np.float32),
        "one": np.ones((1, 1), np.float32),
        "w": noise((2051, 8), 0, 0.02),
    }
    model = tools.build(nodes, {"x": ["n", 2051]}, {"y": ["n", 8], "grown": ["n", "m"]}, arrays)
    feed = {"x": noise((3, 2051), 1)}
    apply(tools, model, feed, compute="half")
    assert tools.run(model, feed)["grown"].shape == (3, 3076)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_bodies_are_converted_behind_float32_boundaries(tools, kind):
    weights = {"w": noise((32, 32), 0, 0.1), "inner": noise((32, 32), 1, 0.1)}
    if kind == "If":
        bodies = []
        for number in range(2):
            inner = [
                helper.make_node("MatMul", ["h", "inner"], [f"p{number}"], name=f"product{number}"),
                helper.make_node("Tanh" if number else "Relu", [f"p{number}"], [f"o{number}"], name=f"act{number}"),
            ]
            out = helper.make_tensor_value_info(f"o{number}", TensorProto.FLOAT, ["n", 32])
            bodies.append(helper.make_graph(inner, f"branch{number}", [], [out]))
        tail = helper.make_node("If", ["flag"], ["y"], name="branch", then_branch=bodies[0], else_branch=bodies[1])
        inputs = {"x": ["n", 32], "flag": (TensorProto.BOOL, [])}
        feeds = [{"x": noise((3, 32), 2), "flag": np.array(flag)} for flag in (True, False)]
    else:
        inner = [
            helper.make_node("MatMul", ["state", "inner"], ["p"], name="product"),
            helper.make_node("Add", ["p", "h"], ["next"], name="add"),
            helper.make_node("Identity", ["go"], ["again"], name="again"),
        ]
        state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in ("state", "next")]
        flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "again")]
        step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
        body = helper.make_graph(inner, "body", [step, flags[0], state[0]], [flags[1], state[1]])
        weights["times"] = np.array(3)
        tail = helper.make_node("Loop", ["times", "", "h"], ["y"], name="loop", body=body)
        inputs, feeds = {"x": ["n", 32]}, [{"x": noise((3, 32), 2)}]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), tail]
    model = tools.build(nodes, inputs, {"y": ["n", 32]}, weights)
    references = [tools.run(model, feed) for feed in feeds]
    apply(tools, model, feeds[0], compute="half")
    assert not any(value.dtype == ir.DataType.FLOAT for _, value in io.initializers(model))
    for feed, reference in zip(feeds, references, strict=True):
        agree(tools, model, reference, feed, 50)


def test_operators_without_16_bits_get_casts(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["flat"], name="product"),
        helper.make_node("Reshape", ["flat", "form"], ["boxes"], name="reshape"),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["kept"], name="nms"),
    ]
    arrays = {"w": noise((32, 40), 0), "form": np.array([1, -1, 4]), "most": np.array([5])}
    model = tools.build(nodes, {"x": [1, 32], "scores": [1, 1, 10]}, {"kept": (TensorProto.INT64, ["k", 3])}, arrays)
    feed = {"x": noise((1, 32), 1), "scores": np.abs(noise((1, 1, 10), 2))}
    change = apply(tools, model, feed, compute="half")
    assert [entry.node for entry in change.details.in_float32] == ["nms"]
    tools.run(model, feed)


def test_tables_are_widened_after_rows_are_picked(tools):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Gemm", ["e", "table"], ["y"], name="head", transB=1),
    ]
    model = tools.build(nodes, {"ids": (TensorProto.INT64, ["n"])}, {"y": ["n", 50]}, {"table": noise((50, 16), 0)})
    reference = tools.run(model, {"ids": np.arange(7)})
    apply(tools, model)
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[0].dtype == ir.DataType.FLOAT16
    assert "table" not in model.graph.initializers
    agree(tools, model, reference, {"ids": np.arange(7)}, 55)


@pytest.mark.parametrize("compute", ["half", "float32"])
def test_a_second_time_changes_nothing(tools, compute):
    model = vision(tools)
    apply(tools, model, compute=compute)
    written = io.to_bytes(model)
    assert apply(tools, model, compute=compute).code == "already_done"
    assert io.to_bytes(model) == written


def test_refusals_name_the_node(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("NGramRepeatBlock", ["ids", "h"], ["y"], name="foreign", domain="com.microsoft", ngram_size=2),
    ]
    model = tools.build(
        nodes, {"x": [1, 32], "ids": (TensorProto.INT64, [1, 4])}, {"y": [1, 32]}, {"w": noise((32, 32), 0)}
    )
    model.graph.outputs[0].type = None
    refusal = apply(tools, model, compute="half")
    assert (refusal.code, refusal.node) == ("unsupported", "foreign")
    empty = tools.build([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 3]}, {"y": [1, 3]})
    assert apply(tools, empty).code == "not_applicable"


def test_weights_beyond_the_range_stay_and_are_told(tools):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights = noise((32, 32), 0)
    weights[3, 3] = 1e6
    for compute in ("half", "float32"):
        model = tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, {"w": weights})
        assert "float16" in apply(tools, model, compute=compute).reason
    model = tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, {"w": weights})
    assert isinstance(apply(tools, model, dtype="bfloat16"), Change)


def test_stored_weights_are_narrowed_when_written(tools, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights = noise((600, 600), 0)
    model = tools.build(nodes, {"x": ["n", 600]}, {"y": ["n", 600]}, {"w": weights})
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    for dtype, kind in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        stored = ir.load(tmp_path / "model.onnx")
        apply(tools, stored, dtype=dtype)
        (lazy,) = (value.const_value for value in stored.graph.initializers.values())
        assert isinstance(lazy, ir.LazyTensor)
        np.testing.assert_array_equal(lazy.numpy(), weights.astype(kind))
    weights[0, 0] = 1e6
    broken = tools.build(nodes, {"x": ["n", 600]}, {"y": ["n", 600]}, {"w": weights})
    ir.save(broken, tmp_path / "broken.onnx", external_data="broken.data")
    stored = ir.load(tmp_path / "broken.onnx")
    apply(tools, stored)
    with pytest.raises(VerificationFailedError, match="range of float16"):
        io.save(stored, tmp_path / "out.onnx")


def test_integer_tensors_are_not_touched(tools):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Gather", ["h", "index"], ["y"], name="pick", axis=1),
    ]
    arrays = {"w": noise((32, 32), 0), "index": np.arange(20)}
    model = tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 20]}, arrays)
    apply(tools, model, compute="half")
    assert model.graph.initializers["index"].dtype == ir.DataType.INT64
    assert numpy_helper.to_array(ir.to_proto(model.graph.initializers["index"].const_value)).tolist() == list(range(20))


def test_weights_in_constant_nodes_are_found(tools):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(noise((64, 80), 0))),
        helper.make_node("Identity", ["w"], ["alias"]),
        helper.make_node("MatMul", ["x", "alias"], ["y"], name="product"),
    ]
    model = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 80]})
    feed = {"x": noise((3, 64), 1)}
    reference = tools.run(model, feed)["y"]
    assert isinstance(apply(tools, model), Change)
    assert tools.sqnr(reference, tools.run(model, feed)["y"]) > 15
    assert io.weight_bytes(model) < 0.6 * 64 * 80 * 4
