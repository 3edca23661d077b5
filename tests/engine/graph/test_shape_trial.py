"""Operators of which onnx knows no shapes do not blind what comes behind them; what stays unknown is named."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import sizes
from engine.graph.coupling import analyse
from engine.prune.channels import _nothing_to_prune

_WIDTH = 16
# Operators of scikit-learn's converters that stand before a network, with the width that they give.
_FIRST = {
    "Scaler": ({"offset": [0.5] * _WIDTH, "scale": [2.0] * _WIDTH}, _WIDTH),
    "Normalizer": ({"norm": "L2"}, _WIDTH),
    "Imputer": ({"imputed_value_floats": [0.0] * _WIDTH, "replaced_value_float": -1.0}, _WIDTH),
    "Binarizer": ({"threshold": 0.2}, _WIDTH),
    "LinearRegressor": ({"coefficients": [0.1] * (3 * _WIDTH), "intercepts": [0.0] * 3, "targets": 3}, 3),
}


def _behind(kind, attributes, wide, *, domain="ai.onnx.ml"):
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(wide, 32)), "v": random.normal(size=(32, 4))}
    nodes = [
        helper.make_node(kind, ["x"], ["s"], "front", domain=domain, **attributes),
        helper.make_node("MatMul", ["s", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 2 if domain == "ai.onnx.ml" else 1)]
    return ir.from_proto(helper.make_model(graph, ir_version=8, opset_imports=imports))


@pytest.mark.parametrize("kind", _FIRST)
def test_channels_are_followed_behind_it(kind):
    attributes, wide = _FIRST[kind]
    model = _behind(kind, attributes, wide)
    assert sizes.infer(model).shapes["s"] == (1, wide)
    coupling = analyse(model)
    assert [len(group.atoms) for group in coupling.groups] == [32]
    assert coupling.unsized is None


def test_what_stays_unknown_is_named():
    """An operator that does not run on zeros of these sizes: the runtime has none of this name."""
    coupling = analyse(_behind("Secret", {}, _WIDTH, domain="com.microsoft"))
    assert coupling.unsized is not None
    refusal = _nothing_to_prune(coupling, settings=type("Settings", (), {"kinds": ()})())
    assert "The sizes behind Secret `front` are unknown" in refusal.reason
    assert refusal.node == "front"
