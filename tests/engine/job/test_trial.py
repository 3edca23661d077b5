"""A trial in its workspace: what is measured of a candidate, that an ordinary job makes the same network, what it never reads."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

import engine
from engine import Compress, run
from engine.contract import Observe
from engine.errors import SpecInvalidError
from engine.graph import io
from engine.job import search_bench, timing, trial
from engine.job.data import JobData
from engine.job.frame import Frame
from engine.job.search_bench import SearchBench
from engine.job.trial import tried, try_candidate
from engine.measure import latency, memory
from engine.runtime.host_lock import HostLock
from engine.search.recipe import recipe_of
from engine.search.values import Point, Proposal, TrialValues
from tests.engine.graph import zoo

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fashion-mnist"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(latency, "_no_garbage_collection", nullcontext)
    monkeypatch.setattr(trial, "_TIMED_S", dict.fromkeys(trial._TIMED_S, 0.1))
    for name in ("STEP_TIMED_S", "RESULT_TIMED_S"):
        monkeypatch.setattr(timing, name, 0.1)


@pytest.fixture
def trained(workspace):
    """A trained residual network with labelled samples."""
    with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
        few = {name: arrays[name][:600] for name in arrays.files}
    return workspace((EXAMPLE / "residual_cnn.onnx").read_bytes(), metric="top1", **few)


@pytest.fixture
def random(workspace, residual_cnn, images):
    """A smaller network that nobody has trained."""
    return workspace(residual_cnn(), image=images(96))


@pytest.fixture
def transformer(workspace):
    model = zoo.vit()
    image = next(value.name for value in model.graph.input)
    values = np.random.default_rng(3).standard_normal((96, 3, 32, 32)).astype(np.float32)
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return workspace(model.SerializeToString(), **{image: values[:, : size[0], : size[1], : size[2]]})


def spec(**goal):
    return engine.read_spec({"goal": {"minimise": "latency", **goal}})


def proposed(point, **more):
    return Proposal(point=point, because="the test", **more)


def opened(workspace, asked=None):
    frame = Frame(workspace, lambda _event: None, HostLock(None), memory.probe)
    return SearchBench.open(asked or spec(), frame)


def weights(path):
    return {name: value.const_value.numpy() for name, value in io.load(path).graph.initializers.items()}


def test_a_candidate_is_measured_beside_the_original(trained):
    with opened(trained) as bench:
        point = bench.architecture.uniform(0.5, dropped=tuple(bench.architecture.blocks)[:1])
        assert point.widths
        assert point.dropped
        values = tried(bench, proposed(point))
        whole = tried(bench, proposed(Point()))
    assert TrialValues.model_validate_json(values.model_dump_json()) == values
    top1 = values.quality[0]
    assert top1.metric == "top1"
    assert top1.original > 0.8
    assert whole.quality[0].difference == 0
    assert values.size_bytes < 0.6 * whole.size_bytes
    assert values.macs < 0.6 * whole.macs
    assert values.parameters < 0.6 * whole.parameters
    assert values.latency.value > 0
    assert values.p99.value > 0
    assert 0 < values.p50_ms <= values.p99_ms
    assert values.peak_memory is None  # nobody asked for it
    assert values.left_out == ()
    assert onnx.load(trained / "out" / "model.onnx").graph.node


def test_an_ordinary_job_makes_the_same_network(random):
    with opened(random) as bench:
        architecture = bench.architecture
        point = architecture.uniform(0.5, dropped=tuple(architecture.blocks)[:1])
        tried(bench, proposed(point))
    ours = weights(random / "out" / "model.onnx")
    # Nothing is left out of it for what it costs, though half of the channels cost more than is allowed.
    recipe = {"passes": list(recipe_of(point, architecture)), "exact": True}
    report = run(Compress.model_validate({"recipe": recipe}), random, lambda _event: None)
    theirs = weights(random / "out" / "model.onnx")
    assert {step.type for step in report.steps if step.status == "applied"} >= {"drop_blocks", "prune_channels"}
    assert {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-6)


def test_a_transformer_loses_heads_and_hidden_neurons(transformer):
    with opened(transformer) as bench:
        architecture = bench.architecture
        kinds = {group.kind for group in architecture.groups.values()}
        assert kinds >= {"heads", "ffn"}
        point = architecture.uniform(0.5, precision="weights8")
        values = tried(bench, proposed(point))
    assert values.macs == pytest.approx(architecture.macs_at(point), rel=0.1)
    made = {node.op_type for node in onnx.load(transformer / "out" / "model.onnx").graph.node}
    # Where nothing is cut or trained any more, attention is the one operator that the runtime has for it.
    assert made >= {"MatMulNBits", "MultiHeadAttention"}
    assert "Softmax" not in made
    assert values.left_out == ()
    assert {each.metric for each in values.quality} >= {"sqnr_db", "cosine"}


def test_a_trial_goes_on_from_another_ones_network(random):
    folder = random / "inherited"
    folder.mkdir()
    with opened(random) as bench:
        architecture = bench.architecture
        tried(bench, proposed(architecture.uniform(0.75)))
        (random / "out" / "model.onnx").rename(folder / "model.onnx")
        values = tried(bench, proposed(architecture.uniform(0.5), inherits=0, level="short", train_s=1.0))
    # Whether a second of training helps is the samples' to say.
    assert all("distill" in each for each in values.left_out)
    assert values.macs == architecture.macs_at(architecture.uniform(0.5))


def test_samples_that_judge_are_never_read(workspace, residual_cnn, images):
    image = images(300).astype(np.float32)
    clean = workspace(residual_cnn(), name="clean", image=image)
    (clean / "scratch").mkdir()
    data = JobData.open(clean, clean / "scratch")
    judge = data.data.parts(data.sizes(engine.inspect_model(clean / "model" / "model.onnx").inputs)).judge
    assert len(judge) > 50
    assert not data.sizes(engine.inspect_model(clean / "model" / "model.onnx").inputs).select_is_judge
    spoilt = image.copy()
    spoilt[judge] = 3e38  # no network gives anything but infinities for these
    dirty = workspace(residual_cnn(), name="dirty", image=spoilt)
    (dirty / "judge").mkdir()
    (dirty / "judge" / "data.npz").write_bytes(b"no archive at all")
    found = []
    for folder in (clean, dirty):
        with opened(folder) as bench:
            found.append(tried(bench, proposed(bench.architecture.uniform(0.5))).quality)
    assert found[0] == found[1]


def test_memory_is_measured_where_the_goal_is_about_it(random):
    values = try_candidate(spec(minimise="memory"), random, lambda _event: None, proposal=proposed(Point()))
    assert values.peak_memory > 1 << 20


def test_what_is_no_candidate_ends_in_words_and_leaves_nothing(random):
    with pytest.raises(SpecInvalidError, match="No group of channels that may change is called `g7`"):
        try_candidate(spec(), random, lambda _event: None, proposal=proposed(Point(widths={"g7": 1})))
    assert not list((random / "out").iterdir())


def test_without_data_outputs_are_compared_on_made_up_samples(workspace, residual_cnn):
    folder = workspace(residual_cnn())
    with opened(folder) as bench:
        assert "static" not in bench.architecture.precisions
        values = tried(bench, proposed(bench.architecture.uniform(0.5)))
    assert {each.metric for each in values.quality} >= {"top1_agreement"}


def test_one_candidate_of_many_is_fitted_to_few_samples_and_the_best_to_all(
    workspace, residual_cnn, images, monkeypatch
):
    monkeypatch.setattr(search_bench, "_FEWEST_FIT", 8)
    monkeypatch.setattr(search_bench, "_MOST_FIT", 8)
    image = images(48) // 2
    # The brightest is among those that the few are not.
    image[46] = 255
    folder = workspace(residual_cnn(), image=image, label=np.arange(48) % 5, part=np.arange(48) % 2)
    with SearchBench.open(spec(), Frame(folder, lambda _event: None, HostLock(None), memory.probe)) as bench:
        every, few = bench.context("best"), bench.context("many", brief=True)
    assert (len(every.calibration), len(few.calibration)) == (24, 8)
    assert (len(every.labels.values), len(few.labels.values)) == (24, 8)
    request = Observe("image", "min_max")
    high = [context.observe(context.original, (request,))[request].high for context in (every, few)]
    assert high[0] == 255
    assert high[1] < 255
