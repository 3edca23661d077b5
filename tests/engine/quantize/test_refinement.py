"""Candidates are kept only for a gain on held-out samples, and the report says what each gave; edge cases of whole networks."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.graph import io
from engine.passes.quantize_static import QuantizeStatic
from engine.quantize import gptq_and_bias, integer_types
from engine.quantize.explain import Compared, ProfileKey
from engine.quantize.output_fidelity import OutputFidelity
from engine.quantize.static_plan import make_plan
from engine.quantize.static_writer import Overrides
from engine.report.values import Change
from engine.runtime import processor, sessions, tracing
from engine.target import Target


@pytest.fixture
def quantized(context, feeds_of):
    """Quantize a serialized network and give the new one with the outcome."""

    def make(serialized, arrays, step=None, *, select=None):
        step = step or QuantizeStatic()
        model = ir.from_proto(onnx.load_model_from_string(serialized))
        given = context(model, feeds_of(arrays), select=None if select is None else feeds_of(select))
        step.prepare(model)
        refusal = step.check(model)
        if refusal is not None:
            return model, refusal
        outcome = step.apply(model, given.observe(model, step.observes(model)), given)
        if isinstance(outcome, Change):
            step.ensures(model)
            io.strip(model)
            onnx.checker.check_model(io.to_bytes(model), full_check=True)
        return model, outcome

    return make


def _kinds(model):
    optimised = tracing.optimised_graph(io.to_bytes(model), Target())
    return [node.op_type for node in onnx.load_model_from_string(optimised).graph.node]


@pytest.mark.usefixtures("avx2")
def test_every_candidate_is_reported_and_only_gains_are_kept(quantized, residual_cnn, images):
    _, change = quantized(residual_cnn(), {"image": images(40)})
    names = [each.candidate for each in change.details.candidates]
    assert {"ranges by mse", "GPTQ rounding of weights", "GPTQ rounding on quantized inputs", "bias correction"} <= set(
        names
    )
    assert "cross-layer equalisation, alpha 0.5" in names
    for tried in change.details.candidates:
        assert tried.kept == (tried.gain_db > 0.1) or abs(tried.gain_db - 0.1) < 0.02
    assert all(None not in (each.output_sqnr_db, each.sensitivity) and each.reason for each in change.details.layers)
    assert change.details.conversions_left.lonely_pairs == ()
    # The rounding may use the limit of pairs, but never pass it.
    assert all(each.accumulator_load <= 1 for each in change.details.layers)


def test_too_few_samples_to_judge_on_leave_the_plain_choice(quantized, residual_cnn, images):
    _, change = quantized(residual_cnn(), {"image": images(40)}, select={"image": images(3)})
    assert change.details.candidates == ()


def test_statistics_come_from_one_part_and_choices_from_the_other(quantized, residual_cnn, images, monkeypatch):
    """Were a range set by a sample to choose by, the brightest of those would show in it."""
    scored = []
    genuine = OutputFidelity.decibels

    def decibels(self, model):
        scored.extend(float(feed["image"].max()) for feed in self.feeds)
        return genuine(self, model)

    monkeypatch.setattr(OutputFidelity, "decibels", decibels)
    step = QuantizeStatic(measure_layers=False, ranges="min_max")
    scales = []
    for brightest in (255, 90):
        dark = np.minimum(images(40), 60)
        chosen_by = np.minimum(images(8, seed=3), brightest)
        chosen_by[0, 0, 0, 0] = brightest
        _, change = quantized(residual_cnn(), {"image": dark}, step, select={"image": chosen_by})
        scales.append(next(layer.activation_scale for layer in change.details.layers if layer.node == "stem"))
        assert max(scored) == brightest
        scored.clear()
    assert scales[0] == scales[1]


def test_without_a_sample_nothing_is_guessed(quantized, residual_cnn, images):
    _, refusal = quantized(residual_cnn(), {"image": images(0)}, QuantizeStatic(measure_layers=False))
    assert refusal.code == "needs_data"


def test_images_from_a_float_operator_are_laid_out_once(quantized, residual_cnn, images):
    model, change = quantized(residual_cnn(), {"image": images(30)}, QuantizeStatic(exclude=("stem",)))
    assert isinstance(change, Change)
    layouts = [node for node in model.graph if node.op_type == "Transpose"]
    assert len(layouts) == 3
    # Forth once; the pooled pixels stay as they are.
    assert _kinds(model).count("Transpose") == 1


def test_a_network_without_a_batch_dimension(quantized, network):
    net = network()
    x = net.op("MatMul", "image", net.normal("w1", 12, 16, scale=0.3), name="m1")
    x = net.op("MatMul", net.relu(x), net.normal("w2", 16, 5, scale=0.3), name="m2")
    rows = np.random.default_rng(0).uniform(0, 255, (40, 12)).astype(np.uint8)
    model, change = quantized(net.build(x, (6, 12), (6, 5)), {"image": rows})
    assert isinstance(change, Change)
    sessions.session(io.to_bytes(model), Target())


def test_attention_with_a_mask_of_sentinels(quantized, network):
    """The mask's -3.4e38 is no activation; products of activations and Softmax stay in float without lonely pairs."""
    net = network()
    names = iter(range(100))

    def dense(x):
        return net.op("MatMul", x, net.normal(f"w{next(names)}", 36, 36, scale=0.2), name=f"dense{next(names)}")

    x = net.op("Reshape", "image", net.weight("shape", np.array([0, 12, 36], np.int64)))
    x = net.op("LayerNormalization", x, net.weight("g", np.ones(36, np.float32)), net.normal("b", 36), axis=-1)
    scores = net.op("MatMul", dense(x), net.op("Transpose", dense(x), perm=[0, 2, 1]), name="qk")
    hidden = np.zeros((1, 12, 12), np.float32)
    hidden[..., 9:] = np.finfo(np.float32).min
    weights = net.op("Softmax", net.op("Add", scores, net.weight("mask", hidden)), axis=-1)
    x = dense(net.op("MatMul", weights, dense(x), name="pv"))
    x = net.op("ReduceMean", x, net.weight("axes", np.array([1], np.int64)), keepdims=0)
    before = net.build(x, out_shape=("n", 36))
    pictures = np.random.default_rng(1).integers(0, 255, (40, 3, 12, 12)).astype(np.uint8)
    model, change = quantized(before, {"image": pictures})
    assert isinstance(change, Change)
    in_float = {each.node: each.reason for each in change.details.in_float}
    assert in_float == {"qk": "both operands are activations", "pv": "both operands are activations"}
    assert change.details.conversions_left.lonely_pairs == ()
    assert any(tried.candidate.startswith("SmoothQuant") for tried in change.details.candidates)
    feed = {"image": pictures[:8].astype(np.float32)}
    wanted, found = (sessions.session(each, Target()).run(feed)["scores"] for each in (before, io.to_bytes(model)))
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > 20


def test_layers_without_a_kernel_stay_in_float_with_the_reason(quantized, network, images):
    net = network()
    x = net.relu(net.conv("image", 3, 8, name="stem"))
    x = net.op("ConvTranspose", x, net.normal("up.w", 8, 4, 2, 2), name="up", strides=[2, 2])
    net = net.build(net.op("Flatten", net.op("GlobalAveragePool", x)), out_shape=("n", 4))
    model, change = quantized(net, {"image": images(16)})
    reasons = {each.node: each.reason for each in change.details.in_float}
    assert "no integer kernel" in reasons["up"]
    assert "ConvTranspose" in _kinds(model)


def test_tables_of_embeddings_are_stored_in_bytes(quantized, network):
    net = network()
    indices = net.op("Cast", net.op("Flatten", "image"), to=7)
    x = net.op("Gather", net.normal("table", 256, 64), indices, name="embed")
    x = net.op("ReduceMean", x, net.weight("axes", np.array([1], np.int64)), keepdims=0)
    x = net.op("MatMul", x, net.normal("w", 64, 5, scale=0.2), name="head")
    before = net.build(x, ("n", 3, 4, 4), ("n", 5))
    tokens = np.random.default_rng(2).integers(0, 255, (40, 3, 4, 4)).astype(np.uint8)
    model, change = quantized(before, {"image": tokens})
    assert [table.node for table in change.details.tables] == ["embed"]
    assert len(io.to_bytes(model)) < 0.4 * len(before)
    model, change = quantized(before, {"image": tokens}, QuantizeStatic(embeddings=False))
    assert change.details.tables == ()


def test_what_candidates_are_scored_by_holds_no_memory_of_the_float_network(
    context, residual_cnn, images, feeds_of, lent
):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    fidelity = OutputFidelity.of(model, context(model, feeds_of({"image": images(40)})))
    assert fidelity.ready
    assert lent() == 0


@pytest.fixture
def watched(context, feeds_of, lent):
    """A pass's surroundings with samples, and how much of what runs gave was held whenever work began."""

    def make(model, images, budget):
        held = []

        @contextmanager
        def working():
            held.append(lent())
            yield

        samples = feeds_of({"image": images})
        return replace(context(model, samples), run_bytes=budget, working=working), samples, held

    return make


def test_rounding_holds_the_inputs_of_one_run(watched, residual_cnn, images):
    model = ir.from_proto(onnx.load_model_from_string(residual_cnn()))
    given, _, held = watched(model, images(12), 1)
    types = integer_types.choose(processor.cpu_profile())
    plan = make_plan(model, frozenset())
    solution = gptq_and_bias.solve(model, plan, types, given, Overrides(), per_channel=True, samples=12)
    assert len(solution.weights) == len(plan.layers)
    assert held == [0] * (12 + len(plan.layers))


@pytest.mark.parametrize("budget", [1, 1 << 30], ids=["one sample at a time", "all together"])
def test_what_layers_say_is_compared_in_runs_that_memory_allows(watched, residual_cnn, images, budget):
    """Of no run is anything left when the next one begins, whichever network it is of."""
    before, after = (ir.from_proto(onnx.load_model_from_string(residual_cnn())) for _ in range(2))
    weight = after.graph.initializers["b2.w"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.1), name=weight.name)
    given, samples, held = watched(before, images(40), budget)
    tensors = {layer.name: ProfileKey.of(layer) for layer in make_plan(before, frozenset()).layers}
    outputs = {node: (key, key.output) for node, key in tensors.items()}
    found = Compared(before, after, given).output_sqnr(outputs, list(islice(samples.batches(8), 2)))
    assert held == [0] * (32 if budget == 1 else 4)
    assert found["a2"] == 200
    assert found["b2"] < 40
