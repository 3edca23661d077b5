"""What a network computes, as one digest."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import ZOO, load

from engine.graph.digest import content_digest

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
    [first] a = Add(x, w)
    [second] b = Mul(a, v)
    y = If(c) <
        then_branch = t () => (float[2] inner) { inner = Sub(b, w) },
        else_branch = e () => (float[2] other) { other = LeakyRelu<alpha = 0.25>(b) }
    >
}
"""


def _digest(text=TEXT):
    return content_digest(ir.from_proto(onnx.parser.parse_model(text)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("= {1, 2}", "= {1, 2.5}"),
        ("Add(x, w)", "Add(w, x)"),
        ("Mul(a, v)", "Div(a, v)"),
        ("Mul(a, v)", "Mul(a, w)"),
        ("Sub(b, w)", "Sub(b, v)"),
        ("alpha = 0.25", "alpha = 0.5"),
        ('"" : 17', '"" : 18'),
        ("float[2] x", "float[2] z"),
    ],
)
def test_what_changes_the_network_changes_the_digest(old, new):
    changed = TEXT.replace(old, new).replace("Add(x", "Add(z") if new == "float[2] z" else TEXT.replace(old, new)
    assert _digest(changed) != _digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[first] ", "[renamed] "),
        ("inner", "renamed"),
        ("[second]", "unused = Neg(x) [second]"),
        ("float[2] w = {1, 2}, float[2] v = {3, 4}", "float[2] v = {3, 4}, float[2] w = {1, 2}"),
    ],
)
def test_names_order_and_what_reaches_no_output_do_not(old, new):
    assert _digest(TEXT.replace(old, new)) == _digest()


def test_weights_of_one_size_are_told_apart_by_what_they_hold():
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    before, size = content_digest(model), len(ir.to_proto(model).SerializeToString())
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(np.array([2, 1], np.float32), name="w")
    assert len(ir.to_proto(model).SerializeToString()) == size
    assert content_digest(model) != before


@pytest.mark.parametrize("name", sorted(ZOO))
def test_copies_have_the_same(name):
    model = load(ZOO[name]())
    assert content_digest(model) == content_digest(model.clone())
