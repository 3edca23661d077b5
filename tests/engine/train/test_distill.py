"""Distillation on small real networks: a pruned one finds its way back, and what cannot be trained is refused with the reason."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract import Labels
from engine.data.dataset import Samples
from engine.graph import io
from engine.measure.quality import Evaluator
from engine.passes.distill import Distill
from engine.passes.prune_channels import PruneChannels
from engine.report.training_markdown import training_lines
from engine.report.values import Change, Interval, Quality, Refusal
from engine.runtime import sessions
from engine.target import Target
from engine.train import checkpoint, memory_plan
from engine.train.trained_weights import trained_weights


@pytest.fixture
def teacher(residual_cnn, images):
    """A random network whose classes are about equally frequent."""
    model = ir.from_proto(onnx.load_from_string(residual_cnn()))
    said = sessions.session(io.to_bytes(model), Target()).run({"image": images(200).astype(np.float32)})["scores"]
    bias, weight = (model.graph.initializers[name] for name in ("head.b", "head.w"))
    bias.const_value = ir.tensor(((bias.const_value.numpy() - said.mean(0)) / said.std()).astype(np.float32))
    weight.const_value = ir.tensor((weight.const_value.numpy() / said.std()).astype(np.float32))
    return model


@pytest.fixture
def job(context, images, feeds_of):
    """A context whose evaluation is the real one, on samples of its own."""

    def make(model, *, count=96, seed=1, **changes):
        select = feeds_of({"image": images(64, seed=9)})
        evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), select, graph=model)

        def evaluate(candidate):
            return evaluator.evaluate(sessions.session(io.to_bytes(io.copy(candidate)), Target()))

        made = context(model, feeds_of({"image": images(count, seed=seed)}), select=select)
        return replace(made, evaluate=evaluate, recognised=evaluator.outputs, **changes)

    return make


@pytest.fixture
def pruned(teacher, context, images, feeds_of):
    model = io.copy(teacher)
    made = context(teacher, feeds_of({"image": images(32)}))
    settings = PruneChannels(sparsity=0.5, reconstruct=False, importance="magnitude", round_to=1)
    assert isinstance(settings.apply(model, {}, made), Change)
    return model


def apply(settings, model, job):
    return settings.apply(model, {}, job)


QUICK = Distill(steps=150, seconds=1000, learning_rate=0.02, batch=16, patience=1.0)


def _agreement(model, other, images):
    feed = {"image": images(200, seed=77).astype(np.float32)}
    said = [
        sessions.session(io.to_bytes(io.copy(each)), Target()).run(feed)["scores"].argmax(1) for each in (model, other)
    ]
    return float((said[0] == said[1]).mean())


def test_a_pruned_network_says_again_what_the_original_says(teacher, pruned, job, images):
    before = _agreement(pruned, teacher, images)
    names = {value.name for _, value in io.initializers(pruned)}
    shapes = {value.name: tuple(value.const_value.shape.numpy()) for _, value in io.initializers(pruned)}
    change = apply(QUICK, pruned, job(teacher))
    assert isinstance(change, Change), change
    assert change.repair
    training = change.details.training
    losses = [point.select_loss for point in training.points]
    assert min(losses) < 0.5 * losses[0]
    assert training.points[-1].train_loss < training.points[1].train_loss
    assert change.details.drop_after < change.details.drop_before
    assert training.metric == "top1_agreement"
    best = next(point for point in training.points if point.step == training.best_step)
    assert best.quality > training.points[0].quality
    # On samples that took no part.
    assert _agreement(pruned, teacher, images) > before + 0.05
    assert {value.name for _, value in io.initializers(pruned)} == names
    assert {value.name: tuple(value.const_value.shape.numpy()) for _, value in io.initializers(pruned)} == shapes


def test_the_report_shows_the_curve_and_what_it_was_done_with(teacher, pruned, job):
    change = apply(QUICK.model_copy(update={"steps": 20, "learning_rate": None}), pruned, job(teacher))
    details = change.details
    lines = "\n".join(training_lines(details, 3))
    assert "### Training of step 3" in lines
    assert "top1_agreement on select" in lines
    assert "chosen by a short trial: 0.01" in lines
    assert "`scores`: KL divergence at temperature 2" in lines
    assert "half of the samples mixed with another one" in lines
    assert details.training.stopped == "steps"
    assert type(change).model_validate_json(change.model_dump_json()) == change


def test_a_network_near_its_teacher_is_not_tried_with_several_rates(teacher, job):
    student = io.copy(teacher)
    weight = student.graph.initializers["a1.w"]
    noise = np.random.default_rng(0).standard_normal(weight.const_value.shape.numpy()).astype(np.float32)
    weight.const_value = ir.tensor(weight.const_value.numpy() * (1 + 0.001 * noise))
    settings = QUICK.model_copy(update={"steps": 10, "learning_rate": None})
    training = _training(apply(settings, student, job(teacher)))
    assert (training.learning_rate, training.tried_rates) == (0.01, {})


def test_with_seconds_alone_the_batch_follows_from_what_a_sample_takes(teacher, pruned, job, tmp_path):
    training = _training(apply(Distill(seconds=4.0), pruned, job(teacher, count=600)))
    assert training.stopped in {"seconds", "no_improvement"}
    assert 8 <= training.batch <= 64
    assert training.steps >= 1
    seen = checkpoint.load(tmp_path / "timed.pt")["seconds_per_sample"]
    assert training.batch == 64 or 500 * 2 * training.batch * seen > 4.0


def test_masks_are_learnt_in_small_batches_of_images_that_are_not_mixed(network, context, images, feeds_of, tmp_path):
    net = network()
    hidden = net.relu(net.conv("image", 3, 8, name="first"))
    mask = net.op("Sigmoid", net.conv(hidden, 8, 1, 1, name="pixel"))
    model = ir.from_proto(onnx.load_from_string(net.build(mask, out_shape=("n", 1, 12, 12))))
    feeds = feeds_of({"image": images(64)})
    evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), feeds, graph=model)

    def evaluate(candidate):
        return evaluator.evaluate(sessions.session(io.to_bytes(io.copy(candidate)), Target()))

    job = replace(context(model, feeds, select=feeds), evaluate=evaluate, recognised=evaluator.outputs)
    assert [each.kind for each in evaluator.outputs] == ["mask"]
    student = io.copy(model)
    for name in ("first.w", "pixel.w"):
        value = student.graph.initializers[name]
        value.const_value = ir.tensor(0.8 * value.const_value.numpy(), name=name)
    # Another attempt plans with what the first one saw: so slow that only the smallest batches do.
    checkpoint.save(tmp_path / "timed.pt", {"seconds_per_sample": 1.0})
    training = _training(Distill(seconds=1.0, learning_rate=0.01).apply(student, {}, job))
    assert training.batch == 2
    assert not any("mixed" in said for said in training.augmentation)


def test_the_same_seed_gives_the_same_network(teacher, pruned, job, tmp_path):
    found = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        student = io.copy(pruned)
        apply(QUICK.model_copy(update={"steps": 25}), student, job(teacher, checkpoint=folder))
        found.append({value.name: value.const_value.numpy() for _, value in io.initializers(student)})
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_tensors_inside_that_both_have_are_held_to_the_teachers(teacher, job):
    student = io.copy(teacher)
    random = np.random.default_rng(0)
    for _, value in io.initializers(student):
        array = value.const_value.numpy()
        value.const_value = ir.tensor(
            (array + 0.2 * array.std() * random.standard_normal(array.shape)).astype(np.float32)
        )
    change = apply(QUICK.model_copy(update={"steps": 40}), student, job(teacher))
    assert change.details.training.boundaries == ("add1_out", "add2_out")
    alone = apply(QUICK.model_copy(update={"steps": 5, "boundaries": 0.0}), io.copy(student), job(teacher))
    assert (alone.details.training if alone.details else alone).boundaries == ()


def test_a_student_of_another_architecture_learns_from_random_weights(job, images, network):
    net = network(seed=3)
    colours = net.op("Flatten", net.op("GlobalAveragePool", "image"))
    weight = net.random.standard_normal((5, 3)).astype(np.float32) / 5
    bias = -weight @ images(200).mean((0, 2, 3)).astype(np.float32)
    serialized = net.build(net.op("Gemm", colours, net.weight("w", weight), net.weight("b", bias), transB=1))
    teacher = ir.from_proto(onnx.load_from_string(serialized))
    net = network(seed=5)
    x = net.op("Mul", "image", net.weight("scale", np.array([1 / 128], np.float32)))
    x = net.relu(net.conv(x, 3, 12, name="c1", stride=2))
    x = net.relu(net.conv(x, 12, 24, name="c2", stride=2))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    serialized = net.build(net.op("Gemm", flat, net.normal("w", 5, 24, scale=0.2), net.normal("b", 5), transB=1))
    student = ir.from_proto(onnx.load_from_string(serialized))
    before = _agreement(student, teacher, images)
    change = apply(QUICK.model_copy(update={"steps": 400, "learning_rate": 0.05}), student, job(teacher, count=256))
    assert isinstance(change, Change), change
    assert _agreement(student, teacher, images) > max(before + 0.2, 0.7)


def test_labels_count_where_the_teacher_agrees_with_them(teacher, pruned, job, images):
    right = sessions.session(io.to_bytes(io.copy(teacher)), Target()).run(
        {"image": images(96, seed=1).astype(np.float32)}
    )
    labels = right["scores"].argmax(1).astype(np.int64)
    quick = QUICK.model_copy(update={"steps": 20})
    with_labels = apply(quick, io.copy(pruned), job(teacher, labels=Labels(labels, "top1")))
    assert _training(with_labels).labels == "cross-entropy, counted 0.1 times"
    wrong = apply(quick, io.copy(pruned), job(teacher, labels=Labels((labels + 1) % 5, "top1")))
    assert _training(wrong).labels.startswith("not used: the teacher agrees with")
    values = apply(quick, io.copy(pruned), job(teacher, labels=Labels(np.zeros((96, 5), np.float32), "mse")))
    assert _training(values).labels.startswith("not used")


def _training(outcome):
    return outcome.details.training


def test_the_original_itself_is_left_as_it_is(teacher, job):
    refused = apply(QUICK.model_copy(update={"steps": 20}), io.copy(teacher), job(teacher))
    assert isinstance(refused, Refusal)
    assert refused.code == "no_gain"
    assert refused.details.training.steps == 20


@pytest.mark.parametrize(("error", "kept"), [(0.02, True), (0.001, False)])
def test_a_loss_of_quality_counts_beyond_its_standard_error(teacher, pruned, job, error, kept):
    made = job(teacher)
    asked = []

    def evaluate(_model):
        asked.append(1)
        value = 0.96 if len(asked) == 1 else 0.95
        return (
            Quality(
                metric="top1_agreement", original=None, compressed=value, difference=None,
                interval=Interval(low=value - error, high=value + error), standard_error=error, samples=100, output="scores",
            ),
        )  # fmt: skip

    outcome = apply(QUICK.model_copy(update={"steps": 60}), pruned, replace(made, evaluate=evaluate))
    assert outcome.details.training.best_step > 0
    assert isinstance(outcome, Change) == kept
    if not kept:
        assert "loses 0.05, the network before 0.04" in outcome.reason


def test_what_does_not_fit_into_memory_is_refused_before_it_starts(teacher, pruned, job, tmp_path):
    limit = memory_plan.resident_bytes() + (16 << 20)
    refused = apply(QUICK, pruned, job(teacher, memory_limit=limit))
    assert isinstance(refused, Refusal)
    assert refused.code == "too_large"
    assert f"its max_memory_mb is {-(-limit >> 20)}" in refused.reason
    assert "even with one sample at a time" in refused.reason
    assert not (tmp_path / "best.pt").exists()


def test_a_tight_limit_cuts_the_batch_into_parts(teacher, pruned, images, monkeypatch):
    # What other tests have left in this process is given back now and then.
    monkeypatch.setattr(memory_plan, "resident_bytes", lambda: 300 << 20)
    feed = {"image": images(1).astype(np.float32)}
    trained = 4 * sum(value.const_value.size for _, value in io.initializers(pruned))
    free = memory_plan.plan(pruned, teacher, trained_bytes=trained, feed=feed, batch=64, limit=None)
    assert (free.micro, free.parts) == (64, 1)
    room = free.fixed_bytes + 10 * free.sample_bytes
    tight = memory_plan.plan(
        pruned,
        teacher,
        trained_bytes=trained,
        feed=feed,
        batch=64,
        limit=memory_plan.resident_bytes() + round(room / 0.9) + (1 << 20),
    )
    assert 5 <= tight.micro <= 40
    assert tight.parts == -(-64 // tight.micro)


def test_a_quantized_network_is_refused(job, teacher):
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["scores"], "dequantize"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(3), "z")],
    )  # fmt: skip
    refused = QUICK.check(ir.from_proto(helper.make_model(graph)))
    assert (refused.code, refused.node) == ("not_applicable", "quantize")
    assert "quantize_aware_train" in refused.hint


def test_where_no_gradient_goes_through_both_sides_are_trained(job, images, network):
    def made(seed):
        net = network(seed=seed)
        x = net.relu(
            net.conv(net.op("Mul", "image", net.weight("scale", np.array([1 / 128], np.float32))), 3, 8, name="c1")
        )
        # PyTorch has no sequences of tensors.
        x = net.op("ConcatFromSequence", net.op("SplitToSequence", x, name="split", axis=1), name="join", axis=1)
        x = net.relu(net.conv(x, 8, 8, name="c2"))
        flat = net.op("Flatten", net.op("GlobalAveragePool", x))
        return ir.from_proto(
            onnx.load_from_string(net.build(net.op("Gemm", flat, net.normal("w", 5, 8), net.normal("b", 5), transB=1)))
        )

    teacher, student = made(3), made(3)
    random = np.random.default_rng(0)
    for name, value in student.graph.initializers.items():
        array = value.const_value.numpy()
        if name != "scale":
            value.const_value = ir.tensor(
                (array + 0.3 * array.std() * random.standard_normal(array.shape)).astype(np.float32)
            )
    before = {name: value.const_value.numpy().copy() for name, value in student.graph.initializers.items()}
    outcome = apply(QUICK.model_copy(update={"steps": 60}), student, job(teacher))
    details = outcome.details
    assert [each.node for each in details.not_trained_through] == ["split", "join"]
    assert "relu2_out" in details.training.boundaries
    losses = [point.select_loss for point in details.training.points]
    assert min(losses) < 0.7 * losses[0]
    changed = {
        name
        for name, value in student.graph.initializers.items()
        if not np.array_equal(before[name], value.const_value.numpy())
    }
    assert {"c1.w", "c2.w", "w"} <= changed
    assert any("No gradient goes through `split`" in line for line in training_lines(details, 0))


def test_what_inputs_are_normalised_with_is_no_weight(network):
    net = network()
    x = net.op("Sub", "image", net.weight("mean", np.full((1, 3, 1, 1), 0.5, np.float32)))
    x = net.op("Div", x, net.weight("std", np.full((1, 3, 1, 1), 0.5, np.float32)))
    x = net.norm(net.conv(x, 3, 4, name="c"), 4, name="bn")
    scale = net.weight("scale", np.ones((1, 4, 1, 1), np.float32))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Mul", x, scale)))
    serialized = net.build(net.op("Gemm", x, net.normal("w", 5, 4), net.normal("b", 5), transB=1))
    model = ir.from_proto(onnx.load_from_string(serialized))
    assert set(trained_weights(model)) == {"c.w", "c.b", "bn.g", "bn.b", "scale", "w", "b"}


_CHILD = """
import sys
from pathlib import Path
from engine.train import loop
from tests.engine.train.test_distill import train_in
loop._CHECKPOINT_S = loop._CHUNK_S = 0.05
train_in(Path(sys.argv[1]))
"""


def train_in(folder):
    """Train a stored student towards a stored teacher."""
    from contextlib import nullcontext

    from engine.contract import Context

    teacher, student = (io.load(folder / f"{name}.onnx") for name in ("teacher", "student"))
    image = np.load(folder / "image.npy")
    samples = Samples({"image": image}, {"image": np.dtype(np.float32)}, np.arange(len(image)))
    evaluator = Evaluator(sessions.session(io.to_bytes(teacher), Target()), samples, graph=teacher)
    context = Context(
        original=teacher, target=Target(), calibration=samples, select=samples,
        evaluate=lambda model: evaluator.evaluate(sessions.session(io.to_bytes(io.copy(model)), Target())),
        observe=lambda _model, _requests: {}, progress=lambda _share, _message: None, race=lambda _models: [],
        working=nullcontext, measuring=nullcontext, checkpoint=folder / "checkpoint", recognised=evaluator.outputs,
    )  # fmt: skip
    change = Distill(steps=80, seconds=1000, learning_rate=0.02, batch=16, patience=1.0).apply(student, {}, context)
    assert isinstance(change, Change), change
    io.save(student, folder / "trained.onnx")
    return change


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(teacher, pruned, images, tmp_path):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        (folder / "checkpoint").mkdir(parents=True)
        io.save(io.copy(teacher), folder / "teacher.onnx")
        io.save(io.copy(pruned), folder / "student.onnx")
        np.save(folder / "image.npy", images(64))
    train_in(folders[0])
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(folders[1])])
    state = folders[1] / "checkpoint" / "training.pt"
    while child.poll() is None and not state.exists():
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -9
    step = checkpoint.load(state)["step"]
    assert 0 < step < 80
    change = train_in(folders[1])
    assert change.details.training.resumed_from == step
    one, other = (folder.joinpath("trained.onnx").read_bytes() for folder in folders)
    assert one == other
