"""What a network declares stays as its author wrote it, whatever a pass makes of it; what is declared wrongly is said."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import Compress, run
from engine.errors import ModelInvalidError, VerificationFailedError
from engine.graph import checker, io, simplify, verify
from engine.graph.declaration import Declaration, contradictions
from engine.graph.validate import inspect_model
from engine.passes.float16 import Float16
from engine.passes.simplify import Simplify
from engine.report.run_facts import Memory

_VALUE = helper.make_tensor_value_info


def _model(nodes, outputs, weights, *, inputs=None, opset=18):
    graph = helper.make_graph(
        nodes,
        "net",
        inputs or [_VALUE("x", TensorProto.FLOAT, ["n", 16])],
        outputs,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def _two_heads():
    weights = {"w": np.eye(16, 8, dtype=np.float32), "v": np.ones((16, 4), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x", "v"], ["b"])]
    outputs = [_VALUE("a", TensorProto.FLOAT, ["n", 8]), _VALUE("b", TensorProto.FLOAT, ["n", 4])]
    return ir.from_proto(_model(nodes, outputs, weights))


@pytest.fixture
def restored():
    def make(change, **options):
        model = _two_heads()
        declared = Declaration.of(model)
        change(model)
        declared.restore(model, **options)
        return [(value.name, value.dtype, io.sizes(value)) for value in (*model.graph.inputs, *model.graph.outputs)]

    return make


def test_shapes_are_written_back(restored):
    def guess(model):
        model.graph.outputs[0].shape = ir.Shape([1, 8, "k"])
        model.graph.outputs[1].shape = None
        model.graph.inputs[0].shape = ir.Shape([1, 16])

    before = restored(lambda _: None)
    assert restored(guess) == before
    assert before[1] == ("a", ir.DataType.FLOAT, ("n", 8))


def test_names_order_and_types_cannot_be_mended(restored):
    def swap(model):
        model.graph.outputs[:] = list(model.graph.outputs)[::-1]

    def rename(model):
        model.graph.outputs[0].name = "other"

    def narrow(model):
        model.graph.outputs[1].dtype = ir.DataType.FLOAT16

    def count(model):
        model.graph.outputs[1].dtype = ir.DataType.INT64

    for change, words in (
        (swap, "`a`, `b` became `b`, `a`"),
        (rename, "`other`"),
        (narrow, "float16"),
        (count, "int64"),
    ):
        with pytest.raises(VerificationFailedError, match=words):
            restored(change)
    assert restored(narrow, widths_may_change=True)[2][1] == ir.DataType.FLOAT16
    with pytest.raises(VerificationFailedError, match="int64"):
        restored(count, widths_may_change=True)
    assert Float16(keep_io=False).widths_may_change
    assert not Float16().widths_may_change


def test_another_order_of_outputs_is_caught_on_the_ladder(tmp_path, feeds_of):
    model = _two_heads()
    io.save(model, tmp_path / "original.onnx")
    model.graph.outputs[:] = list(model.graph.outputs)[::-1]
    io.save(model, tmp_path / "candidate.onnx")
    with pytest.raises(VerificationFailedError, match=r"outputs changed: `a` .* became `b`"):
        verify.verify(
            tmp_path / "candidate.onnx",
            tmp_path / "original.onnx",
            feeds_of({"x": np.ones((4, 16))}),
            verify.Target(),
            lossless=True,
        )


def test_a_stage_that_guesses_shapes_keeps_the_authors(context, feeds_of, monkeypatch):
    def guess(model):
        model.graph.outputs[1].shape = ir.Shape(["n", 4, 1])
        return model

    def swap(model):
        model.graph.outputs[:] = list(model.graph.outputs)[::-1]
        return model

    monkeypatch.setattr(simplify, "_onnxslim", guess)
    monkeypatch.setattr(simplify, "_fold_batch_norms", swap)
    model = _two_heads()
    change = Simplify().apply(model, {}, context(_two_heads(), feeds_of({"x": np.ones((4, 16))})))
    assert [(value.name, io.sizes(value)) for value in model.graph.outputs] == [("a", ("n", 8)), ("b", ("n", 4))]
    assert [each.stage for each in change.details.dropped_stages] == ["batch normalisation"]
    assert "outputs changed" in change.details.dropped_stages[0].reason


def _flattening(declared):
    """Gives as many axes as it likes: the shape is computed, so that nothing but a run tells its rank."""
    weights = {
        "w": (np.arange(160, dtype=np.float32).reshape(16, 10) / 99) - 0.7,
        "first": np.array([0]), "one": np.array([1]), "last": np.array([-1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["count"]),
        helper.make_node("Concat", ["count", "one", "last"], ["shape"], axis=0),
        helper.make_node("Reshape", ["a", "shape"], ["y"]),
    ]
    return _model(nodes, [_VALUE("y", TensorProto.FLOAT, declared)], weights)


_WRONG = [["n", 10], [10], ["n", 7], [1, 10], None]


@pytest.mark.parametrize("declared", _WRONG, ids=str)
def test_libraries_do_not_believe_a_wrong_declaration(declared, context, feeds_of):
    """onnxslim folds a shape that is computed into the one that is declared."""
    model = ir.from_proto(_flattening(declared))
    change = Simplify().apply(
        model, {}, context(ir.from_proto(_flattening(declared)), feeds_of({"x": np.ones((4, 16))}))
    )
    assert (change.details.stages, change.details.dropped_stages) == (("constant folding and fusion",), ())
    assert change.summary == "5 operators became 2."
    assert io.sizes(model.graph.outputs[0]) == (None if declared is None else tuple(declared))


def test_a_squeezed_output_keeps_the_axis_that_a_library_adds_to_it(context, feeds_of):
    """Without axes, one sample loses its batch; the author declares what one sample gives."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Squeeze", ["b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    weights = {"w": np.eye(16, 4, dtype=np.float32)}
    for declared in (["n"], [4], ["n", 4], None):
        build = _model(nodes, [_VALUE("y", TensorProto.FLOAT, declared)], weights)
        model = ir.from_proto(build)
        change = Simplify().apply(model, {}, context(ir.from_proto(build), feeds_of({"x": np.ones((4, 16))})))
        assert change.summary == "4 operators became 3."
        assert io.sizes(model.graph.outputs[0]) == (None if declared is None else tuple(declared))


@pytest.mark.usefixtures("short_measurements")
@pytest.mark.parametrize("declared", [["n", "k", 4], None], ids=str)
def test_integers_are_planned_where_the_declaration_is_wrong_or_missing(workspace, declared, capfd):
    """What an output has no shape for, or a wrong one, ONNX Runtime runs; no pass says otherwise, on the terminal neither."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(64, 3, 3, 3)).astype(np.float32) / 5,
        "v": random.normal(size=(64, 64, 3, 3)).astype(np.float32) / 24,
        "last": random.normal(size=(64, 4)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], "second", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "last"], ["y"], "last"),
    ]
    inputs = [_VALUE("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    network = _model(nodes, [_VALUE("y", TensorProto.FLOAT, declared)], weights, inputs=inputs)
    folder = workspace(network.SerializeToString(), x=random.normal(size=(48, 3, 8, 8)).astype(np.float32))
    recipe = {"recipe": {"passes": [{"type": "quantize_static"}], "exact": True}}
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    report = run(Compress.model_validate(recipe), folder, lambda _event: None, probe=lambda *_: probe)
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert capfd.readouterr().err == ""
    shape = onnx.load(folder / "out" / "model.onnx").graph.output[0].type.tensor_type
    assert shape.HasField("shape") == (declared is not None)


def test_a_wrong_declaration_is_told_by_a_run():
    model = ir.from_proto(_flattening(["n", 10]))
    assert contradictions(model, {"y": np.zeros((4, 1, 10))}) == [
        (
            "Output `y` is declared as [n, 10], but a run gives [4, 1, 10]. ONNX Runtime takes no notice, so the declaration stays"
            " as it is; other runtimes may refuse the network."
        )
    ]
    assert contradictions(model, {"y": np.zeros((4, 10))}) == []
    assert len(contradictions(model, {"y": np.zeros((4, 11))})) == 1


@pytest.mark.usefixtures("short_measurements")
def test_a_job_on_a_wrong_declaration_runs_and_warns(workspace):
    folder = workspace(_flattening(["n", 10]).SerializeToString(), x=np.random.default_rng(0).normal(size=(24, 16)))
    passes = [{"type": "simplify"}, {"type": "quantize_weights", "bits": 8}]
    spec = Compress.model_validate({"recipe": {"passes": passes}})
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    report = run(spec, folder, lambda _event: None, probe=lambda *_: probe)
    assert report.latency is not None
    assert any("declared as [n, 10], but a run gives" in each for each in report.warnings)
    assert report.self_difference is not None
    assert report.self_difference.words in (folder / "out" / "report.md").read_text()
    dims = onnx.load(folder / "out" / "model.onnx").graph.output[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dims] == ["n", 10]


def test_shapes_that_only_the_declaration_contradicts_are_a_warning(tmp_path):
    weights = {"w": np.ones((16, 10), np.float32)}
    path = tmp_path / "net.onnx"
    onnx.save(
        _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [_VALUE("y", TensorProto.FLOAT, ["n", 7])], weights),
        path,
    )
    assert any("contradicts its operators" in each for each in inspect_model(path).warnings)
    verify.valid(path, path)
    with pytest.raises(VerificationFailedError, match="not valid ONNX"):
        verify.valid(path)
    wrong = [helper.make_node("MatMul", ["x", "x"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["y"])]
    inputs = [_VALUE("x", TensorProto.FLOAT, [3, 16])]
    onnx.save(_model(wrong, [_VALUE("y", TensorProto.FLOAT, ["n", 7])], weights, inputs=inputs), path)
    with pytest.raises(ModelInvalidError, match="contradict each other"):
        inspect_model(path)


_SEQUENCES = (
    helper.make_node("SequenceConstruct", ["x", "x"], ["two"]),
    helper.make_node("Identity", ["two"], ["same"]),
    helper.make_node("ConcatFromSequence", ["same"], ["h"], axis=-1),
    helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
)
_RANDOM = (
    helper.make_node("Concat", ["x", "x"], ["two"], axis=-1),
    helper.make_node("RandomNormalLike", ["two"], ["h"]),
    helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
)
_MASKED = (
    helper.make_node("Concat", ["x", "x"], ["h"], axis=-1),
    helper.make_node("MatMul", ["h", "w"], ["p"], "product"),
    helper.make_node("Greater", ["x", "zero"], ["kept"]),
    helper.make_node("Where", ["kept", "p", "none"], ["y"]),
)


@pytest.mark.usefixtures("short_measurements")
@pytest.mark.parametrize(
    "nodes", [_SEQUENCES, _RANDOM, _MASKED], ids=["sequences", "random numbers", "infinite places"]
)
def test_integers_are_planned_beside_what_is_no_plain_tensor(workspace, nodes, capfd):
    """Sequences have no shape, random numbers no kernel that repeats them, and masked places no size."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(128, 64)).astype(np.float32) / 11,
        "zero": np.float32(0),
        "none": np.float32(-np.inf),
    }
    inputs = [_VALUE("x", TensorProto.FLOAT, ["n", 64])]
    network = _model(nodes, [_VALUE("y", TensorProto.FLOAT, ["n", 64])], weights, inputs=inputs)
    folder = workspace(network.SerializeToString(), x=random.normal(size=(48, 64)).astype(np.float32))
    recipe = {"recipe": {"passes": [{"type": "quantize_static"}], "exact": True}}
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    report = run(Compress.model_validate(recipe), folder, lambda _event: None, probe=lambda *_: probe)
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert capfd.readouterr().err == ""


def test_a_constant_that_contradicts_the_authors_declaration_is_no_fault_of_the_step(tmp_path):
    """The original computes the shape, of which not even the length is known before a run: nobody sees there what is wrong."""
    wanted, all_but_one = np.array([-1, 1, 10, 5]), np.array([True, True, True, False])
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    computed = [helper.make_node("Compress", ["wanted", "all_but_one"], ["shape"], axis=0), reshape]

    def saved(name, nodes, weights, declared):
        path = tmp_path / f"{name}.onnx"
        inputs = [_VALUE("x", TensorProto.FLOAT, ["n", 10])]
        onnx.save(_model(nodes, [_VALUE("y", TensorProto.FLOAT, declared)], weights, inputs=inputs), path)
        return path

    original = saved("original", computed, {"wanted": wanted, "all_but_one": all_but_one}, ["n", 10])
    assert checker.check(original, infer=True) is None
    folded = saved("folded", [reshape], {"shape": wanted[:3]}, ["n", 10])
    assert checker.check(folded, infer=True) is not None
    verify.valid(folded, original)
    # What a step declares itself is its own fault.
    other = saved("other", [reshape], {"shape": wanted[:3]}, ["n", 7])
    with pytest.raises(VerificationFailedError, match="not valid"):
        verify.valid(other, original)
