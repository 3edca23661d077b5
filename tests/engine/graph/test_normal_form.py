"""Networks as old and careless exporters write them, which ONNX Runtime takes: read in one form, and every pass works on it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import Compress, run
from engine.errors import ModelInvalidError
from engine.graph import io
from engine.graph.validate import inspect_model
from engine.report.run_facts import Memory
from engine.runtime.sessions import session
from engine.target import Target

_SIZES = (32, 64, 32)
_LOOSE = [{"metric": "sqnr_db", "rule": "min", "value": -9}]


def _perceptron(*, names=("one", "two"), listed=False, ir_version=8, imports=(("", 13),)):
    random = np.random.default_rng(0)
    weights = {
        f"w{number}": random.normal(size=sizes).astype(np.float32) / 8
        for number, sizes in enumerate([_SIZES[:2], _SIZES[1:]])
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], names[0]),
        helper.make_node("Relu", ["a"], ["b"], "between"),
        helper.make_node("MatMul", ["b", "w1"], ["y"], names[1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _SIZES[0]])]
    if listed:
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in weights.items()
        ]
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", _SIZES[2]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid(*each) for each in imports]
    )


@pytest.fixture
def stored(tmp_path):
    def make(model):
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def applied(workspace, short_measurements):
    """Runs a job of one step; gives its report and its network."""

    def make(model, step):
        random = np.random.default_rng(1)
        folder = workspace(model.SerializeToString(), name=step["type"], x=random.normal(size=(40, _SIZES[0])))
        spec = Compress.model_validate({"recipe": {"passes": [step]}, "gates": _LOOSE})
        probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
        report = run(spec, folder, lambda _event: None, probe=lambda *_: probe)
        return report.steps[0], onnx.load(folder / "out" / "model.onnx")

    return make


def test_weights_among_the_inputs_are_constants(stored):
    path = stored(_perceptron(listed=True, ir_version=3, imports=(("", 9),)))
    assert any("2 weights are also inputs" in each for each in inspect_model(path).warnings)
    model = io.load(path)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    x = np.ones((3, _SIZES[0]), np.float32)
    before, after = (session(each, Target()).run({"x": x})["y"] for each in (path, io.to_bytes(model)))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "step", [{"type": "prune_channels", "sparsity": 0.5}, {"type": "quantize_weights", "bits": 8}, {"type": "simplify"}]
)
def test_every_pass_takes_them_for_what_they_are(applied, step):
    done, result = applied(_perceptron(listed=True, ir_version=3, imports=(("", 9),)), step)
    assert done.refusal is None or done.refusal.code == "no_gain", done.refusal
    assert [value.name for value in result.graph.input if value.name == "x"] == ["x"]


def test_nodes_of_one_name_are_told_apart(stored):
    path = stored(_perceptron(names=("layer", "layer")))
    assert any("1 operators share their name" in each for each in inspect_model(path).warnings)
    assert [node.name for node in io.load(path).graph] == ["layer", "between", "layer_2"]
    taken = stored(_perceptron(names=("between", "between")))
    assert [node.name for node in io.load(taken).graph] == ["between", "between_2", "between_3"]


def test_layers_of_one_name_are_quantized_each(applied):
    done, result = applied(_perceptron(names=("layer", "layer")), {"type": "quantize_weights", "bits": 8})
    assert done.change is not None
    assert [layer.node for layer in done.change.details.layers] == ["layer", "layer_2"]
    # The network as it was uploaded does not load; that which comes out does, also where no step was kept.
    assert session(result.SerializeToString(), Target()).inputs[0].name == "x"


def test_an_operator_set_that_is_imported_twice(stored):
    """As converters of scikit-learn write it; two versions of one set are something else."""
    assert inspect_model(stored(_perceptron(imports=(("", 13), ("ai.onnx.ml", 1), ("", 13))))).opset == {
        "": 13,
        "ai.onnx.ml": 1,
    }
    assert inspect_model(stored(_perceptron(imports=(("", 13), ("ai.onnx", 13))))).opset == {"": 13}
    with pytest.raises(ModelInvalidError, match="twice, as version 13 and as version 12"):
        inspect_model(stored(_perceptron(imports=(("", 13), ("", 12)))))
