"""Every quantization pass on every network that breaks other tools: a faithful result, or a refusal with its reason."""

import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.calibrate import observe
from engine.data.dataset import Samples
from engine.graph import io, verify
from engine.measure.quality import Evaluator
from engine.passes import AnyPass
from engine.report.values import Change, Refusal
from engine.runtime import sessions
from engine.target import Target

KINDS = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(AnyPass)[0])}
STEPS = {
    "quantize_static": {"measure_layers": False},
    "quantize_dynamic": {"smallest": 1024},
    "quantize_weights": {"bits": 8},
    "float16": {},
    "mixed_precision": {"max_drop": 0.5},
}
# A mixture may store weights in 4 bits.
FAITHFUL_DB = {"mixed_precision": 12.0}
OTHERS_DB = 20.0
RANDOM = np.random.default_rng(5)
FLOATS = {"x": RANDOM.standard_normal((40, 64)).astype(np.float32)}


@pytest.fixture(autouse=True)
def _own_generator(monkeypatch):
    """Each test draws from a generator of its own, whatever ran before it."""
    monkeypatch.setattr(sys.modules[__name__], "RANDOM", np.random.default_rng(5))


def draw(*shape):
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def plain(tools, **options):
    nodes = [node("MatMul", ["x", "w1"], "h"), node("Relu", ["h"], "r"), node("Gemm", ["r", "w2", "b"], "y")]
    weights = {"w1": draw(64, 96), "w2": draw(96, 64), "b": draw(64)}
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights, **options), FLOATS


def quantized(tools):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["w", "s"], "dw"),
        node("MatMul", ["d", "dw"], "y"),
    ]
    weights = {"s": np.float32(0.02), "z": np.uint8(128), "w": RANDOM.integers(-127, 128, (64, 64)).astype(np.int8)}
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights), FLOATS


def old(tools):
    return plain(tools, opset=9, ir_version=4)


def tied(tools):
    """One matrix in two layers."""
    nodes = [node("MatMul", ["x", "w"], "h"), node("Tanh", ["h"], "r"), node("MatMul", ["r", "w"], "y")]
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, {"w": draw(64, 64)}), FLOATS


def shared_scales(tools):
    """Operators that hand integers on as they are, so that their inputs and outputs have one scale."""
    nodes = [
        node("Conv", ["x", "k"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("MaxPool", ["r"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", ["p", "p"], "cc", axis=1),
        node("Flatten", ["cc"], "f"),
        node("MatMul", ["f", "w"], "y"),
    ]
    weights = {"k": draw(16, 8, 3, 3), "w": draw(512, 10)}
    arrays = {"x": RANDOM.standard_normal((40, 8, 8, 8)).astype(np.float32)}
    return tools.build(nodes, {"x": ["n", 8, 8, 8]}, {"y": ["n", 10]}, weights), arrays


def in_if(tools):
    """A layer in each branch, one outside."""
    branches = [
        helper.make_graph(
            [node("MatMul", ["h", f"w{index}"], f"y{index}")],
            f"branch{index}",
            [],
            [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["n", 64])],
        )
        for index in (1, 2)
    ]
    nodes = [
        node("MatMul", ["x", "w0"], "h"),
        node("ReduceMean", ["h"], "mean", keepdims=0),
        node("Less", ["mean", "zero"], "flag"),
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = {"w0": draw(64, 64), "w1": draw(64, 64), "w2": draw(64, 64), "zero": np.float32(0)}
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights), FLOATS


def in_loop(tools):
    """The same layer three times over, and one outside."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            node("MatMul", ["state", "w1"], "product"),
            node("Tanh", ["product"], "next"),
            node("Identity", ["going"], "on"),
        ],
        "body",
        [info("turn", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("state", 1, ["n", 64])],
        [info("on", TensorProto.BOOL, []), info("next", 1, ["n", 64])],
    )
    nodes = [
        node("MatMul", ["x", "w0"], "h"),
        helper.make_node("Loop", ["three", "", "h"], ["y"], name="loop", body=body),
    ]
    weights = {"w0": draw(64, 64), "w1": draw(64, 64), "three": np.int64(3)}
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights), FLOATS


def integer_inputs(tools):
    nodes = [
        node("Gather", ["table", "ids"], "e"),
        node("ReduceMean", ["e"], "m", axes=[1], keepdims=0),
        node("MatMul", ["m", "w"], "y"),
    ]
    arrays = {"ids": RANDOM.integers(0, 50, (40, 7))}
    weights = {"table": draw(50, 64) * 7, "w": draw(64, 64)}
    return tools.build(nodes, {"ids": (TensorProto.INT64, ["n", 7])}, {"y": ["n", 64]}, weights), arrays


def without_batch(tools):
    """A matrix that is one sample, and a number."""
    nodes = [node("Mul", ["x", "gain"], "g"), node("MatMul", ["g", "w1"], "h"), node("MatMul", ["h", "w2"], "y")]
    arrays = {
        "x": RANDOM.standard_normal((40, 5, 64)).astype(np.float32),
        "gain": RANDOM.uniform(0.5, 1, 40).astype(np.float32),
    }
    weights = {"w1": draw(64, 64), "w2": draw(64, 64)}
    return tools.build(nodes, {"x": [5, 64], "gain": []}, {"y": [5, 64]}, weights), arrays


def no_samples(tools):
    model, arrays = plain(tools)
    return model, {name: array[:0] for name, array in arrays.items()}


def constant_activations(tools):
    """All samples are alike, and all of their numbers."""
    return plain(tools)[0], {"x": np.full((40, 64), 0.5, np.float32)}


def half_constant(tools):
    """One of two branches is cut off by a Relu and never says anything but zero."""
    nodes = [
        node("Gemm", ["x", "w1", "low"], "h"),
        node("Relu", ["h"], "dead"),
        node("MatMul", ["dead", "w2"], "d"),
        node("MatMul", ["x", "w3"], "e"),
        node("Add", ["d", "e"], "y"),
    ]
    weights = {"w1": draw(64, 64), "low": np.full(64, -1000, np.float32), "w2": draw(64, 64), "w3": draw(64, 64)}
    return tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights), FLOATS


EDGES = (
    quantized, old, tied, shared_scales, in_if, in_loop, integer_inputs, without_batch, no_samples, constant_activations,
    half_constant,
)  # fmt: skip
REFUSED = {
    **{(kind, "quantized"): "already_done" for kind in STEPS if kind != "float16"},
    ("float16", "quantized"): "not_applicable",
    ("quantize_static", "no_samples"): "needs_data",
    ("mixed_precision", "no_samples"): "needs_data",
}


def samples_of(model, arrays):
    axes = dict.fromkeys(arrays) if "gain" in arrays else None
    dtypes = {name: array.dtype for name, array in arrays.items()}
    return Samples(arrays, dtypes, np.arange(len(next(iter(arrays.values())))), axes)


def made(tools, model, samples, kind, tmp_path):
    """Take the steps that the pipeline takes."""
    evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), samples) if len(samples) else None
    given = replace(
        tools.context(io.copy(model), samples),
        evaluate=lambda candidate: evaluator.evaluate(sessions.session(io.to_bytes(candidate), Target())),
        observe=lambda network, requests: observe(network, requests, samples, Target(), scratch=tmp_path),
        race=lambda models: [1.0, *[0.8] * (len(models) - 1)],
    )
    step = KINDS[kind].model_validate(STEPS[kind])
    step.prepare(model)
    refusal = step.check(model)
    if refusal is not None:
        return refusal
    outcome = step.apply(model, given.observe(model, step.observes(model)), given)
    if isinstance(outcome, Change):
        step.ensures(model)
    return outcome


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
def test_a_faithful_network_or_a_reason(tools, kind, edge, tmp_path):
    model, arrays = edge(tools)
    before, samples = io.to_bytes(model), samples_of(model, arrays)
    outcome = made(tools, model, samples, kind, tmp_path)
    expected = REFUSED.get((kind, edge.__name__))
    if expected is not None:
        assert isinstance(outcome, Refusal)
        assert outcome.code == expected
        assert outcome.reason.endswith(".")
        return
    assert isinstance(outcome, Change), outcome
    onnx.checker.check_model(io.to_bytes(model))
    # Whoever needs no samples is judged on what they would have been.
    arrays = arrays if len(samples) else FLOATS
    feeds = verify.some_feeds(sessions.session(before, Target()), samples_of(model, arrays))
    opened = [sessions.session(io.to_bytes(model), Target(), optimise=optimise) for optimise in (True, False)]
    for session in opened:
        assert verify.agreement(sessions.session(before, Target()), session, feeds).sqnr_db > FAITHFUL_DB.get(
            kind, OTHERS_DB
        )
