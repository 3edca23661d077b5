"""Untrusted networks: what is told of good ones, and that each kind of bad one is refused in words for its owner."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import EngineError, inspect_model
from engine.errors import ModelInvalidError, ModelUnsupportedError
from engine.graph import io
from engine.runtime import sessions
from engine.target import Target


def _model(
    nodes, *, initializers=(), functions=(), imports=(("", 18),), inputs=(("x", [2, 2]),), ir_version=9, out=("a", "b")
):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        list(initializers),
    )
    return helper.make_model(
        graph,
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid(*entry) for entry in imports],
        functions=list(functions),
    )


def _relu():
    return helper.make_node("Relu", ["x"], ["y"], "act")


def _bomb(depth=30):
    """Each function calls the one below twice: 2^depth operators in a few kilobytes."""
    functions = []
    for level in range(depth):
        inner = ("Relu", "") if level == 0 else (f"f{level - 1}", "local")
        nodes = [
            helper.make_node(inner[0], ["a"], ["b"], domain=inner[1]),
            helper.make_node(inner[0], ["b"], ["c"], domain=inner[1]),
        ]
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["c"], nodes, imports))
    call = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="local")
    return _model([call], functions=functions, imports=(("", 18), ("local", 1)))


def _nested(depth=20):
    def body(level):
        if level == 0:
            node = helper.make_node("Relu", ["x"], ["r0"])
        else:
            inner = body(level - 1)
            node = helper.make_node("If", ["c"], [f"r{level}"], then_branch=inner)
        return helper.make_graph([node], f"g{level}", [], [helper.make_tensor_value_info(f"r{level}", 1, None)])

    top = body(depth)
    node = helper.make_node("If", ["c"], ["y"], then_branch=top)
    model = _model([node])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def _external(location, **keys):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **keys}.items():
        weight.external_data.add(key=key, value=value)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializers=[weight])


def _recursive():
    node = helper.make_node("f", ["a"], ["b"], domain="local")
    function = helper.make_function("local", "f", ["a"], ["b"], [node], [helper.make_opsetid("local", 1)])
    call = helper.make_node("f", ["x"], ["y"], domain="local")
    return _model([call], functions=[function], imports=(("", 18), ("local", 1)))


def _short_weight():
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], raw_data=b"\0" * 8)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializers=[weight])


def _huge_weight():
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[200_000, 200_000], raw_data=b"")
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializers=[weight])


INVALID = {
    "no operators": lambda: _model([]),
    "cycle": lambda: _model([helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]),
    "unknown operator": lambda: _model([helper.make_node("Nonsense", ["x"], ["y"])]),
    "required input empty": lambda: _model([helper.make_node("Einsum", [""], ["y"], equation="ij->i")]),
    "required input missing": lambda: _model([helper.make_node("Add", ["x"], ["y"])]),
    "input from nowhere": lambda: _model([helper.make_node("Relu", ["q"], ["y"])]),
    "shapes contradict": lambda: _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        initializers=[numpy_helper.from_array(np.ones((3, 3), np.float32), "w")],
    ),
    "opset not imported": lambda: _model(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
    ),
    "weight too short": _short_weight,
    "negative size": lambda: _model([_relu()], inputs=(("x", [-2, 2]),)),
    "external data outside": lambda: _external("../weights.bin"),
    "external data absolute": lambda: _external("/etc/passwd"),
    "external data missing": lambda: _external("weights.bin"),
    "function calls itself": _recursive,
}
UNSUPPORTED = {
    "name of megabytes": lambda: _model([helper.make_node("Relu", ["n" * 5000], ["y"])], inputs=(("n" * 5000, [2]),)),
    "axis of megabytes": lambda: _model([_relu()], out=("a" * 5000, "b")),
    "operator of megabytes": lambda: _model([helper.make_node("Relu", ["x"], ["y"], "n" * 5000)]),
    "more to tell of than is kept": lambda: _model(
        [_relu()], inputs=(("x", [2, 2]), *((f"{number:04}" * 200, [1]) for number in range(400)))
    ),
    "foreign domain": lambda: _model(
        [helper.make_node("Op", ["x"], ["y"], "n", domain="evil")], imports=(("", 18), ("evil", 1))
    ),
    "old opset": lambda: _model([_relu()], imports=(("", 6),)),
    "opset of the future": lambda: _model([_relu()], imports=(("", 99),)),
    "function bomb": _bomb,
    "nested too deep": _nested,
    "160 GB weight": _huge_weight,
    "160 GB declared": lambda: _model([_relu()], inputs=(("x", [400_000, 400_000]),)),
    "input called label": lambda: _model([helper.make_node("Relu", ["label"], ["y"])], inputs=(("label", [2, 2]),)),
    "no inputs": lambda: _model(
        [helper.make_node("Relu", ["w"], ["y"])],
        inputs=(),
        initializers=[numpy_helper.from_array(np.ones((2, 2), np.float32), "w")],
    ),
}


def test_minus_one_is_an_open_size(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(_model([_relu()], inputs=(("x", [-1, 2]),), out=(-1, 2)), path)
    assert inspect_model(path).inputs[0].shape == (None, 2)
    model = io.load(path)
    assert not isinstance(model.graph.inputs[0].shape[0], int)
    assert not isinstance(model.graph.outputs[0].shape[0], int)


def _write(tmp_path, content) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_networks_are_refused_with_a_sentence(tmp_path, kind):
    with pytest.raises(ModelInvalidError) as caught:
        inspect_model(_write(tmp_path, INVALID[kind]()))
    assert caught.value.message.endswith((".", "]", ")")) or "onnx" in caught.value.message.lower()
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_networks_that_are_not_taken_are_refused_with_a_sentence(tmp_path, kind):
    with pytest.raises(ModelUnsupportedError) as caught:
        inspect_model(_write(tmp_path, UNSUPPORTED[kind]()))
    assert caught.value.problem()["class"] == "user"
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "content", [b"", b"this is a text file, not a network\n" * 50, b"\x08\x07", b"PK\x03\x04" + b"\0" * 64]
)
def test_other_files_are_refused(tmp_path, content):
    with pytest.raises(ModelInvalidError):
        inspect_model(_write(tmp_path, content))


def test_truncation_anywhere_is_refused_or_another_valid_network(tmp_path, residual_cnn):
    whole = residual_cnn()
    for cut in range(1, len(whole), max(1, len(whole) // 60)):
        with pytest.raises(EngineError):
            inspect_model(_write(tmp_path, whole[:cut]))


def test_a_node_is_named(tmp_path):
    with pytest.raises(ModelInvalidError) as caught:
        inspect_model(_write(tmp_path, _model([helper.make_node("Add", ["x", ""], ["y"], "sum")])))
    assert caught.value.node == "sum"
    assert "`B`" in caught.value.message


def test_a_good_network_is_described(tmp_path, residual_cnn):
    found = inspect_model(_write(tmp_path, residual_cnn()))
    assert found.inputs[0].model_dump() == {"name": "image", "dtype": "float32", "shape": ("n", 3, 12, 12)}
    assert found.outputs[0].name == "scores"
    assert found.ops["Conv"] == 6
    assert found.nodes == sum(found.ops.values())
    assert (found.quantized, found.float_type, found.external_data) == ("none", "float32", False)
    assert (
        found.parameters
        == 3 * 16 * 9 + 16 + 2 * (16 * 16 * 9 + 16) + 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32 + 3 * 32 + 5 * 33
    )


def test_external_data_in_the_folder_are_taken(tmp_path):
    model = _external("weights.bin", offset="0", length="16")
    (tmp_path / "weights.bin").write_bytes(np.eye(2, dtype=np.float32).tobytes())
    found = inspect_model(_write(tmp_path, model))
    assert found.external_data
    assert found.size_bytes == len(model.SerializeToString()) + 16


def test_external_data_through_a_link_are_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelInvalidError, match="outside"):
        inspect_model(_write(inner, _external("weights.bin")))


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = _model(
        [node], initializers=[weight], inputs=(("x", [2, 2]), ("w", [2, 2])), ir_version=3, imports=(("", 9),)
    )
    found = inspect_model(_write(tmp_path, model))
    assert [entry.name for entry in found.inputs] == ["x"]
    assert any("also inputs" in warning for warning in found.warnings)


def test_quantization_is_recognised(tmp_path):
    def quantized(*, also_float):
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w8", "s"], ["w"]),
            helper.make_node("MatMul", ["d", "w"], ["m"]),
            helper.make_node("MatMul", ["m", "f"], ["y"]) if also_float else helper.make_node("Relu", ["m"], ["y"]),
        ]
        arrays = {
            "s": np.float32(0.1),
            "z": np.uint8(0),
            "w8": np.ones((2, 2), np.int8),
            "f": np.eye(2, dtype=np.float32),
        }
        return _model(nodes, initializers=[numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()])

    assert inspect_model(_write(tmp_path, quantized(also_float=False))).quantized == "fully"
    assert inspect_model(_write(tmp_path, quantized(also_float=True))).quantized == "partly"


def test_contrib_operators_are_taken(tmp_path):
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    assert inspect_model(_write(tmp_path, _model([node], imports=(("", 18), ("com.microsoft", 1))))).ops == {"Gelu": 1}


def test_onnx_itself_accepts_the_good_ones(tmp_path, residual_cnn):
    onnx.checker.check_model(str(_write(tmp_path, residual_cnn())), full_check=True)


def _classifier(label, probabilities):
    model = _model([helper.make_node("Relu", ["x"], ["y"])])
    del model.graph.output[:]
    model.graph.output.extend(
        [helper.make_value_info("label", label), helper.make_value_info("probabilities", probabilities)]
    )
    return model


@pytest.mark.parametrize(
    ("label", "probabilities", "what", "hint"),
    [
        (
            helper.make_tensor_type_proto(TensorProto.INT64, [None]),
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
            ),
            "a sequence of maps",
            "zipmap: False",
        ),
        (
            helper.make_tensor_type_proto(TensorProto.STRING, [None]),
            helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 2]),
            "a tensor of strings",
            "LabelEncoder",
        ),
    ],
)
def test_outputs_of_exported_classifiers(tmp_path, label, probabilities, what, hint):
    with pytest.raises(ModelUnsupportedError) as told:
        inspect_model(_write(tmp_path, _classifier(label, probabilities)))
    assert what in told.value.message
    assert hint in told.value.hint


TEXTS = {
    "name of an input": b"xxxx", "name inside": b"yyyy", "name of an output": b"zzzz", "name of a node": b"nnnn",
    "name of the graph": b"gggg", "name of a size": b"ssss", "producer": b"pppp", "words": b"dddd", "operator": b"Relu",
    "attribute": b"alpha", "metadata": b"kkkk",
}  # fmt: skip


@pytest.mark.parametrize("word", TEXTS.values(), ids=TEXTS)
def test_text_that_is_none_is_the_owners_fault(tmp_path, word):
    nodes = [
        helper.make_node("Relu", ["xxxx"], ["yyyy"], name="nnnn", doc_string="dddd"),
        helper.make_node("LeakyRelu", ["yyyy"], ["zzzz"], alpha=0.1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["ssss", 4]) for name in ("xxxx", "zzzz")]
    graph = helper.make_graph(nodes, "gggg", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)], producer_name="pppp")
    helper.set_model_props(model, {"kkkk": "v"})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    inspect_model(path)
    path.write_bytes(model.SerializeToString().replace(word, b"\xff\xfe" + word[2:]))
    with pytest.raises(ModelInvalidError, match="not UTF-8"):
        inspect_model(path)
    if word != b"dddd":
        path.write_bytes(model.SerializeToString().replace(word, b"\0\0" + word[2:]))
        with pytest.raises(ModelInvalidError, match="holds a NUL"):
            inspect_model(path)


def _as_only_the_runtime_takes_it():
    """Nodes in no order, one of them behind what a branch makes, and the standard domain by its other name."""
    branch = [
        helper.make_graph(
            [helper.make_node(kind, ["h"], [kind])], kind, [], [helper.make_tensor_value_info(kind, 1, None)]
        )
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Relu", ["picked"], ["y"], "last"),
        helper.make_node("If", ["yes"], ["picked"], "if", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Sigmoid", ["x"], ["h"], "first"),
    ]
    model = _model(nodes, initializers=[numpy_helper.from_array(np.array(True), "yes")], imports=(("ai.onnx", 18),))
    for node in (*model.graph.node, *(graph.node[0] for graph in branch)):
        node.domain = "ai.onnx"
    return model


def test_order_and_domain_are_taken_as_the_runtime_takes_them(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(_as_only_the_runtime_takes_it(), path)
    runs = sessions.session(path, Target()).run
    feed = {"x": np.arange(4, dtype=np.float32).reshape(2, 2)}
    before, stored = runs(feed)["y"], path.read_bytes()
    found = inspect_model(path)
    assert path.read_bytes() == stored
    assert found.opset == {"": 18}
    assert any("they are sorted" in warning for warning in found.warnings)
    assert any("`ai.onnx`" in warning for warning in found.warnings)
    model = io.load(path)
    assert [node.name for node in model.graph] == ["first", "if", "last"]
    assert model.opset_imports == {"": 18}
    inspect_model(path, mend=True)
    onnx.checker.check_model(str(path), full_check=True)
    assert inspect_model(path).warnings == tuple(each for each in found.warnings if "If" in each)
    np.testing.assert_array_equal(sessions.session(path, Target()).run(feed)["y"], before)


def test_a_circle_is_no_order(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    onnx.save(_model(nodes), tmp_path / "net.onnx")
    with pytest.raises(ModelInvalidError, match="topologically sorted"):
        inspect_model(tmp_path / "net.onnx")


def test_tables_that_inputs_are_looked_up_in_are_counted(tmp_path):
    tables = [numpy_helper.from_array(np.zeros((rows, 4), np.float32), f"of_{rows}") for rows in (7, 3)]
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["of_7", "ids"], ["word"]),
        helper.make_node("Gather", ["of_3", "ids"], ["kind"]),
        helper.make_node("Gather", ["of_7", "ids"], ["across"], axis=1),
        helper.make_node("Concat", ["word", "kind"], ["y"], axis=0),
    ]
    onnx.save(_model(nodes, initializers=tables, out=("a", "b", "c")), tmp_path / "net.onnx")
    assert inspect_model(tmp_path / "net.onnx").tables == {"x": 3}


def test_a_network_over_which_onnxs_own_rules_fail_is_refused(tmp_path):
    """STFT's rule reads the length of a frame from a constant, which holds none here."""
    parts = [
        helper.make_tensor("signal", TensorProto.FLOAT, [1, 0, 2, 0], []),
        helper.make_tensor("step", TensorProto.INT64, [4, 1, 0, 2], []),
    ]
    network = _model([helper.make_node("STFT", ["signal", "step"], ["y"])], initializers=parts, imports=(("", 19),))
    onnx.save(network, tmp_path / "x.onnx")
    with pytest.raises(ModelInvalidError, match="its graph cannot be checked"):
        inspect_model(tmp_path / "x.onnx")
