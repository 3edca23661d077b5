import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.errors import BaselineFailedError, DatasetInvalidError, VerificationFailedError
from engine.measure import kept_outputs as module
from engine.measure.kinds import closeness
from engine.measure.quality import Evaluator
from engine.runtime.sessions import session
from engine.target import Target

CPU = Target()
WEIGHT = np.random.default_rng(0).normal(size=(8, 10))
X = np.random.default_rng(1).normal(size=(203, 8)).astype(np.float32)
SCORES = X @ WEIGHT.astype(np.float32)


def by_metric(found):
    return {each.metric: each for each in found}


def noisy(scale=0.3, seed=1):
    return WEIGHT + np.random.default_rng(seed).normal(size=WEIGHT.shape) * scale


def test_without_labels_there_is_fidelity(linear, arrays):
    with Evaluator(session(linear(WEIGHT), CPU), arrays(x=X)) as evaluator:
        found = by_metric(evaluator.evaluate(session(linear(noisy()), CPU)))
    assert list(found) == ["sqnr_db", "cosine", "top1_agreement", "kl"]
    other = X.astype(float) @ noisy().astype(np.float32)
    expected = 10 * np.log10((SCORES**2).sum() / ((SCORES - other) ** 2).sum())
    assert found["sqnr_db"].compressed == pytest.approx(expected, abs=1e-3)
    same = SCORES.argmax(1) == other.argmax(1)
    assert found["top1_agreement"].compressed == pytest.approx(same.mean())
    assert found["cosine"].compressed < 1
    assert found["kl"].compressed > 0
    for each in found.values():
        assert each.samples == 203
        assert each.original is None
        assert each.interval.low < each.compressed < each.interval.high


def test_the_same_network_agrees_with_itself(linear, arrays):
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=SCORES.argmax(1), metric="top1")
    found = by_metric(evaluator.evaluate(session(linear(WEIGHT), CPU)))
    assert found["sqnr_db"].compressed == 200
    assert found["kl"].compressed == 0
    assert found["top1"].difference == 0
    assert found["top1"].discordant == 0
    # 203 samples without a change do not show that there is none.
    assert found["top1"].interval.low == pytest.approx(-3.8415 / 206.8415, rel=1e-3)
    assert found["top1_agreement"].interval.low < 1


@pytest.mark.parametrize("metric", ["top1", "top5", "f1"])
def test_decisions_are_compared_in_pairs(linear, arrays, metric):
    truth = (X @ noisy(0.2, seed=2).astype(np.float32)).argmax(1)
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=truth, metric=metric)
    found = by_metric(evaluator.evaluate(session(linear(noisy()), CPU)))[metric]
    assert found.difference == pytest.approx(found.compressed - found.original)
    assert found.interval.low < found.difference < found.interval.high
    assert found.compressed_interval.low < found.compressed < found.compressed_interval.high
    if metric == "top1":
        other = X @ noisy().astype(np.float32)
        before, after = SCORES.argmax(1) == truth, other.argmax(1) == truth
        assert (found.original, found.compressed) == (before.mean(), after.mean())
        assert found.discordant == (before != after).sum()


def f1_by_hand(decided, truth):
    classes = np.union1d(decided, truth)
    pairs = [((decided == c) & (truth == c), (decided == c), (truth == c)) for c in classes]
    return np.mean([2 * both.sum() / (got.sum() + want.sum()) for both, got, want in pairs])


def test_f1_and_its_error(linear, arrays):
    truth = (X @ noisy(0.5, seed=3).astype(np.float32)).argmax(1)
    other = (X @ noisy().astype(np.float32)).argmax(1)
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=truth, metric="f1")
    found = by_metric(evaluator.evaluate(session(linear(noisy()), CPU)))["f1"]
    assert found.original == pytest.approx(f1_by_hand(SCORES.argmax(1), truth))
    assert found.compressed == pytest.approx(f1_by_hand(other, truth))
    rng, spread = np.random.default_rng(4), []
    for _ in range(600):
        drawn = rng.integers(0, len(X), len(X))
        spread.append(f1_by_hand(other[drawn], truth[drawn]) - f1_by_hand(SCORES.argmax(1)[drawn], truth[drawn]))
    assert found.standard_error == pytest.approx(np.std(spread), rel=0.2)  # the bootstrap knows it to about 3 %


def test_regression_is_compared_by_the_mean_difference(linear, arrays):
    wanted = SCORES + np.random.default_rng(2).normal(size=SCORES.shape).astype(np.float32)
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=wanted, metric="mse")
    found = by_metric(evaluator.evaluate(session(linear(noisy()), CPU)))["mse"]
    assert found.original == pytest.approx(((SCORES - wanted) ** 2).mean(), rel=1e-4)
    assert found.interval.low > 0  # it got worse beyond doubt
    assert found.discordant is None


def test_perplexity_and_its_error(linear, arrays):
    truth = SCORES.argmax(1)
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=truth, metric="perplexity")
    found = by_metric(evaluator.evaluate(session(linear(noisy()), CPU)))["perplexity"]

    def losses(scores):
        return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), truth]

    before, after = losses(SCORES.astype(float)), losses(X.astype(float) @ noisy())
    assert found.original == pytest.approx(np.exp(before.mean()), rel=1e-4)
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, len(X), (1000, len(X)))
    spread = np.exp(after[drawn].mean(1)) - np.exp(before[drawn].mean(1))
    assert found.standard_error == pytest.approx(spread.std(), rel=0.1)


def test_sqnr_covers_the_truth():
    """The interval of a ratio of sums, on many sets drawn from one population."""
    rng = np.random.default_rng(6)
    population = rng.gamma(2.0, size=(200_000, 2)) * (5.0, 0.1)
    truth = 10 * np.log10(population[:, 0].mean() / population[:, 1].mean())
    hits = 0
    for _ in range(500):
        drawn = population[rng.integers(0, len(population), 100)]
        found = closeness.sqnr(drawn[:, 0], drawn[:, 1])
        hits += found.interval.low <= truth <= found.interval.high
    assert 0.92 <= hits / 500 <= 0.98


@pytest.mark.parametrize("batch", [1, 4, "n"])
def test_batches_do_not_matter(linear, arrays, batch):
    evaluator = Evaluator(
        session(linear(WEIGHT, batch=batch), CPU), arrays(x=X), labels=SCORES.argmax(1), metric="top1"
    )
    found = by_metric(evaluator.evaluate(session(linear(noisy(), batch=batch), CPU)))
    plain = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=SCORES.argmax(1), metric="top1", batch=7)
    again = by_metric(plain.evaluate(session(linear(noisy()), CPU)))
    for name, each in found.items():
        assert each.compressed == pytest.approx(again[name].compressed, abs=1e-6)
        assert each.samples == 203


def test_the_batch_follows_what_a_sample_costs(linear, arrays):
    wide = linear(np.zeros((1 << 16, 5), np.float32) + np.arange(5, dtype=np.float32))
    graph = ir.from_proto(onnx.load_model_from_string(wide))
    samples = arrays(x=np.random.default_rng(0).random((6, 1 << 16), np.float32))
    for run_bytes, batch in ((64 << 20, 32), (1 << 20, 3), (1, 1)):
        evaluator = Evaluator(session(wide, CPU), samples, graph=graph, run_bytes=run_bytes)
        assert evaluator._runs.batch == batch
        assert by_metric(evaluator.evaluate(session(wide, CPU)))["sqnr_db"].samples == 6


def test_samples_on_the_second_axis(build, arrays):
    """Recurrent networks give (steps, samples, classes)."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    x = np.random.default_rng(3).normal(size=(9, 5, 8)).astype(np.float32)

    def net(weight):
        weights = {"w": weight.astype(np.float32)}
        return session(build(nodes, {"x": ["n", 5, 8]}, {"y": TensorProto.FLOAT}, weights), CPU)

    labels = (x @ WEIGHT).argmax(-1)
    found = by_metric(Evaluator(net(WEIGHT), arrays(x=x), labels=labels, metric="top1").evaluate(net(noisy())))
    assert found["top1"].original == 1
    assert found["top1"].samples == 9
    assert found["top1"].compressed == pytest.approx(((x @ noisy()).argmax(-1) == labels).mean())


def two_outputs(build, **outputs):
    """A network that gives several views of x."""
    return session(build([helper.make_node(op, ["x"], [name]) for name, op in outputs.items()], {"x": ["n", 8]},
                         dict.fromkeys(outputs, TensorProto.FLOAT)), CPU)  # fmt: skip


def test_the_main_output_is_the_one_that_fits(build, arrays):
    nodes = [helper.make_node("ReduceMean", ["x"], ["flat"], keepdims=0), helper.make_node("Relu", ["x"], ["scores"])]
    model = build(nodes, {"x": ["n", 8]}, {"flat": TensorProto.FLOAT, "scores": TensorProto.FLOAT})
    evaluator = Evaluator(session(model, CPU), arrays(x=X), labels=X.argmax(1), metric="top1", output="scores")
    assert evaluator.output == "scores"
    nodes[0] = helper.make_node("Slice", ["x", "a", "b", "axes"], ["flat"])
    bounds = {"a": np.array([0]), "b": np.array([1]), "axes": np.array([1])}
    model = build(nodes, {"x": ["n", 8]}, {"flat": TensorProto.FLOAT, "scores": TensorProto.FLOAT}, bounds)
    assert Evaluator(session(model, CPU), arrays(x=X)).output == "scores"
    assert Evaluator(session(model, CPU), arrays(x=X), labels=X.argmax(1), metric="top5").output == "scores"


def test_broken_candidates_are_failures_not_numbers(build, arrays):
    good = two_outputs(build, y="Abs")
    evaluator = Evaluator(good, arrays(x=X))
    with pytest.raises(VerificationFailedError, match="NaN in output `y`"):
        evaluator.evaluate(two_outputs(build, y="Sqrt"))
    with pytest.raises(VerificationFailedError, match="lost the output `y`"):
        evaluator.evaluate(two_outputs(build, z="Abs"))
    narrow = build([helper.make_node("ReduceMax", ["x", "axes"], ["y"])], {"x": ["n", 8]}, {"y": TensorProto.FLOAT},
                   {"axes": np.array([1])})  # fmt: skip
    with pytest.raises(VerificationFailedError, match="shape"):
        evaluator.evaluate(session(narrow, CPU))
    infinite = build([helper.make_node("Div", ["x", "zero"], ["y"])], {"x": ["n", 8]}, {"y": TensorProto.FLOAT},
                     {"zero": np.float32(0)})  # fmt: skip
    with pytest.raises(VerificationFailedError, match="infinite"):
        evaluator.evaluate(session(infinite, CPU))
    with pytest.raises(BaselineFailedError, match="original network gives NaN"):
        Evaluator(two_outputs(build, y="Sqrt"), arrays(x=X))
    hidden = two_outputs(build, y="Abs", second="Sqrt")
    with pytest.raises(VerificationFailedError, match="`second`"):
        evaluator.evaluate(hidden)


def test_labels_must_fit(linear, arrays):
    net = session(linear(WEIGHT), CPU)
    with pytest.raises(DatasetInvalidError, match="two held-out samples"):
        Evaluator(net, arrays(x=X[:1]))
    with pytest.raises(DatasetInvalidError, match="3 labels for 203 samples"):
        Evaluator(net, arrays(x=X), labels=np.zeros(3, int), metric="top1")
    with pytest.raises(DatasetInvalidError, match="do not fit"):
        Evaluator(net, arrays(x=X), labels=np.zeros((203, 3), int), metric="top1")


def test_large_outputs_go_to_files_and_leave_with_the_evaluator(linear, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEMORY_FOR_OUTPUTS", 3000)
    plain = by_metric(Evaluator(session(linear(WEIGHT), CPU), arrays(x=X)).evaluate(session(linear(noisy()), CPU)))
    with Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), scratch=tmp_path) as evaluator:
        assert len(list(tmp_path.rglob("*.npy"))) >= 4
        assert by_metric(evaluator.evaluate(session(linear(noisy()), CPU))) == plain
    assert list(tmp_path.iterdir()) == []


def test_what_the_original_said_holds_no_memory_of_its_runs(linear, arrays, lent):
    evaluator = Evaluator(session(linear(WEIGHT), CPU), arrays(x=X), labels=SCORES.argmax(1), metric="top1")
    assert lent() == 0
    evaluator.evaluate(session(linear(noisy()), CPU))
    assert lent() == 0


def test_integer_outputs_have_agreement_only(build, arrays):
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)]
    net = session(build(nodes, {"x": ["n", 8]}, {"y": TensorProto.INT64}), CPU)
    evaluator = Evaluator(net, arrays(x=X), labels=X.argmax(1), metric="top1")
    found = by_metric(evaluator.evaluate(net))
    assert list(found) == ["top1", "top1_agreement"]
    assert found["top1"].compressed == 1


def test_half_floats_are_read(build, arrays):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)]
    half = session(build(nodes, {"x": ["n", 8]}, {"y": TensorProto.FLOAT16}), CPU)
    found = by_metric(Evaluator(two_outputs(build, y="Identity"), arrays(x=X)).evaluate(half))
    assert 60 < found["sqnr_db"].compressed < 90  # 11 bits of mantissa
