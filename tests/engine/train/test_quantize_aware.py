"""quantize_aware_train: repairs what quantization cost, keeps the integer graph, refuses with a reason."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import engine
from engine.graph import io
from engine.measure.quality import Evaluator
from engine.passes.quantize_aware_train import QuantizeAwareTrain
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.report.training_markdown import training_lines
from engine.report.values import Change, Refusal
from engine.runtime import sessions
from engine.target import Target
from engine.train.scales import remove_unread
from tests.engine.train.quantized_networks import few_bits, parsed, perceptron, rows, static

QUICK = {"learning_rate": 1e-2, "batch": 16, "shift": 0, "mixup": False}


@pytest.fixture
def job(context):
    """Give the context of a job on a network: it is evaluated on samples that nothing is trained on."""

    def make(original, samples, select):
        evaluator = Evaluator(sessions.session(io.to_bytes(original), Target()), select, graph=original)

        def evaluate(model):
            return evaluator.evaluate(sessions.session(io.to_bytes(model), Target()))

        return replace(
            context(io.copy(original), samples, select=select), evaluate=evaluate, recognised=evaluator.outputs
        )

    return make


def graph_of(model):
    """Everything but numbers."""
    nodes = [(node.op_type, node.domain, len(node.inputs), len(node.outputs)) for node in model.graph]
    stored = sorted((str(each.const_value.dtype), tuple(each.const_value.shape)) for _, each in io.initializers(model)
                    if each.const_value.dtype != ir.DataType.FLOAT)  # fmt: skip
    return nodes, stored


def widen(model, factor):
    """Make the grids of some activations far too coarse, as unlucky samples do; biases keep what they stand for."""
    grids = {node.inputs[1].name: node.inputs[1] for node in model.graph if node.op_type == "QuantizeLinear"}
    for value in list(grids.values())[1:4]:
        value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=value.name)
    for node in model.graph:
        if node.op_type in {"Conv", "Gemm"}:
            read, weight, bias = (value.producer() for value in node.inputs[:3])
            codes, old = (value.const_value.numpy() for value in bias.inputs[:2])
            new = (read.inputs[1].const_value.numpy() * weight.inputs[1].const_value.numpy()).astype(np.float32)
            bias.replace_input_with(
                0, _initializer(model, f"{node.name}_b", np.rint(codes * (old / new)).astype(np.int32))
            )
            bias.replace_input_with(1, _initializer(model, f"{node.name}_s", new))


def _initializer(model, name, array):
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def test_it_repairs_a_badly_scaled_network(residual_cnn, images, feeds_of, context, job):
    samples, select = (feeds_of({"image": images(count, seed=seed)}) for count, seed in ((96, 1), (48, 2)))
    original, model = static(residual_cnn(), context, samples)
    widen(model, 12.0)
    remove_unread(model)
    given = job(original, samples, select)
    before, shape = given.evaluate(model), graph_of(model)
    change = QuantizeAwareTrain(steps=60, **QUICK).apply(model, {}, given)
    assert isinstance(change, Change)
    assert change.repair
    after = given.evaluate(model)
    assert graph_of(model) == shape
    quality = [{each.metric: each.compressed for each in found} for found in (before, after)]
    assert quality[1]["kl"] < 0.5 * quality[0]["kl"]
    details = change.details
    assert {layer.node for layer in details.weights} == {"stem", "a1", "a2", "b1", "b2", "short", "head"}
    first, *later = [point.select_loss for point in details.training.points]
    assert min(later) < first
    QuantizeAwareTrain().ensures(model)
    assert Change.model_validate_json(change.model_dump_json()) == change
    told = "\n".join(training_lines(details, 2))
    assert "### Integers that step 2 trained" in told
    assert "| b2 | Conv | 8 |" in told


@pytest.mark.parametrize("form", ["matmul_nbits", "qdq"])
def test_it_repairs_four_bits(network, feeds_of, context, job, form):
    samples, select = (feeds_of({"image": rows(count, seed=seed)}) for count, seed in ((256, 1), (256, 2)))
    original, model = few_bits(perceptron(network), context, samples, format=form, symmetric=True, group=32)
    given = job(original, samples, select)
    before, shape = given.evaluate(model), graph_of(model)
    change = QuantizeAwareTrain(steps=120, **QUICK).apply(model, {}, given)
    assert isinstance(change, Change)
    assert graph_of(model) == shape
    quality = [{each.metric: each.compressed for each in found} for found in (before, given.evaluate(model))]
    assert quality[1]["kl"] < 0.7 * quality[0]["kl"]


def test_a_float_network_is_to_be_quantized_first(residual_cnn):
    refusal = QuantizeAwareTrain().check(parsed(residual_cnn()))
    assert refusal.code == "not_applicable"
    assert "quantize first" in refusal.reason
    assert "quantize_static" in refusal.hint


def test_a_form_without_grids_is_named(network, context, feeds_of):
    model = parsed(perceptron(network))
    samples = feeds_of({"image": rows()})
    step = QuantizeDynamic()
    step.prepare(model)
    step.apply(model, {}, context(model, samples))
    refusal = QuantizeAwareTrain().check(model)
    assert refusal.code == "not_applicable"
    assert "DynamicQuantize" in refusal.reason or "Integer" in refusal.reason


def test_a_network_that_was_uploaded_quantized_has_nobody_to_learn_from(network, context, feeds_of, job):
    samples = feeds_of({"image": rows()})
    _, model = few_bits(perceptron(network), context, samples)
    refusal = QuantizeAwareTrain(steps=5).apply(io.copy(model), {}, job(model, samples, samples))
    assert isinstance(refusal, Refusal)
    assert "teacher" in refusal.hint


def test_what_does_not_help_is_refused_with_figures(residual_cnn, images, feeds_of, context, job):
    samples, select = (feeds_of({"image": images(count, seed=seed)}) for count, seed in ((32, 1), (16, 2)))
    original, model = static(residual_cnn(), context, samples)
    given = job(original, samples, select)
    refusal = QuantizeAwareTrain(steps=3, **{**QUICK, "learning_rate": 1e-9}).apply(model, {}, given)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "no_gain"
    assert refusal.details.training.points


@pytest.mark.usefixtures("short_measurements")
def test_a_job_quantizes_and_then_trains_what_it_quantized(workspace, residual_cnn, images):
    folder = workspace(residual_cnn(opset=21), image=images(96))
    spec = engine.Compress.model_validate(
        {
            "recipe": {
                "passes": [
                    {"type": "quantize_weights", "method": "rtn", "format": "qdq"},
                    {"type": "quantize_aware_train", "steps": 60, "learning_rate": 1e-2, "batch": 16},
                ]
            },
            "gates": [
                {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0},
                {"metric": "sqnr_db", "rule": "min", "value": 0},
            ],
        }
    )
    report = engine.run(spec, folder, lambda _event: None)
    assert [step.status for step in report.steps] == ["applied", "applied"]
    kl = [{each.metric: each.compressed for each in step.quality}["kl"] for step in report.steps]
    assert kl[1] < kl[0]
    assert report.size.compressed < 0.5 * report.size.original
