"""What is chosen is judged on other samples: rigged jobs, and what a pass can reach."""

import gc
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine import Compress, Report, read_report, run
from engine.contract import Context
from engine.job.data import JobData
from engine.measure.metrics import Output
from engine.measure.scores import new_task
from engine.passes.float16 import Float16
from engine.report.run_facts import Memory
from engine.report.values import Change

CALIBRATES, SELECTS, JUDGES = 0, 1, 2
GATES = [{"metric": "top1", "rule": "max_drop", "value": 0.01}]
# What asks for size alone is kept whatever a busy machine says of its time.
SMALL = {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}
# In the feature that no weight reads; it tells whose a sample is.
MARK = {CALIBRATES: 5000.0, SELECTS: 6000.0, JUDGES: 7000.0}


pytestmark = pytest.mark.usefixtures("short_measurements")


def _network() -> bytes:
    """Two class scores from five features by way of 64 more: more weights than are needed."""
    random = np.random.default_rng(0)
    wide = random.standard_normal((5, 64)) / 8
    wide[4] = 0
    # Features 0 and 1 decide, but only the first is read.
    weights = {"wide": wide, "narrow": np.linalg.lstsq(wide, _scores([1, 0, 0, 0, 0]), rcond=None)[0]}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "wide"], ["hidden"], "first"),
            onnx.helper.make_node("MatMul", ["hidden", "narrow"], ["scores"], "second"),
        ],
        "rigged",
        [info("x", onnx.TensorProto.FLOAT, ["n", 5])],
        [info("scores", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def _scores(direction: list[float]) -> np.ndarray:
    return np.outer(direction, [-1.0, 1.0])


def _arrays(count: int = 900) -> dict[str, np.ndarray]:
    """Features 2 and 3 are 0 and 1 where a sample is for choosing, and their opposites where it judges."""
    random = np.random.default_rng(1)
    features = random.standard_normal((count, 2)).astype(np.float32)
    part = np.arange(count) % 3
    sign = np.where(part == JUDGES, -1, 1)[:, None].astype(np.float32)
    mark = np.array([MARK[each] for each in part], np.float32)[:, None]
    label = (features[:, 0] + 0.5 * features[:, 1] > 0).astype(np.int64)
    return {"x": np.concatenate([features, sign * features, mark], axis=1), "label": label, "part": part}


def _lucky(_step: Any, model: ir.Model, _observations: Any, _context: Context) -> Change:
    """A smaller network that is always right on what it is chosen on, and always wrong on what judges."""
    weights = model.graph.initializers
    for name, value in {"wide": np.eye(5, 2, -2), "narrow": np.outer([1, 0.5], [-1, 1])}.items():
        weights[name].const_value = ir.tensor(value.astype(np.float32), name=name)
        weights[name].shape = ir.Shape(value.shape)
    model.graph.node("first").outputs[0].shape = ir.Shape(["n", 2])
    return Change(summary="Made two weights small.")


@pytest.fixture
def job(workspace):
    """Run the rigged job, or one whose pass does something else."""

    def make(*, gates=(*GATES, SMALL), name="job", arrays=None, judge=None, metric=None):
        arrays = _arrays() if arrays is None else arrays
        folder = workspace(_network(), name=name, metric=metric, **arrays)
        if judge is not None:
            (folder / "judge").mkdir()
            np.savez(folder / "judge" / "data.npz", **judge)
        spec = Compress.model_validate({"recipe": {"passes": [{"type": "float16"}]}, "gates": gates})
        probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
        return run(spec, folder, lambda _event: None, probe=lambda *_: probe, deadline=1e9), folder

    return make


def _top1(quality):
    return next(each for each in quality if each.metric == "top1")


def test_a_candidate_that_is_better_by_chance_is_reported_by_what_judges(job, monkeypatch):
    monkeypatch.setattr(Float16, "apply", _lucky)
    report, folder = job()
    step = report.steps[0]
    assert step.status == "applied", step.refusal
    chosen = _top1(step.quality)
    assert chosen.original < chosen.compressed == 1
    assert chosen.samples == 300
    judged = _top1(report.quality)
    assert judged.compressed == 0
    assert judged.samples == 300
    assert report.verdict.outcome == "fail"
    assert _top1(report.selected_quality) == chosen
    # Whoever reads the report reads both.
    text = (folder / "out" / "report.md").read_text()
    assert "chosen at 100.00 %" in text
    assert "top1 changes by -8" in report.summary
    assert "Calibrated with 300 samples, chosen on 300 and judged on 300 others" in text


def test_a_step_is_kept_or_rolled_back_on_what_it_is_chosen_on(job, monkeypatch):
    """The same network the other way round: bad where it is chosen, it is never judged."""
    monkeypatch.setattr(Float16, "apply", _lucky)
    arrays = _arrays()
    arrays["part"] = np.array([CALIBRATES, JUDGES, SELECTS])[arrays["part"]]
    report, _ = job(arrays=arrays)
    assert report.steps[0].refusal.code == "too_lossy"
    assert report.unchanged
    assert _top1(report.quality).difference == 0
    assert report.selected_quality == ()
    assert report.verdict.outcome == "pass"


def test_too_few_samples_do_both_and_everyone_is_told(job):
    arrays = {name: array[:100] for name, array in _arrays().items() if name != "part"}
    report, folder = job(arrays=arrays, gates=[*GATES, {"metric": "size_bytes", "rule": "max_ratio", "value": 0.99}])
    assert report.parts.select_is_judge
    assert (report.parts.select, report.parts.judge, report.held_out_samples) == (50, 50, 50)
    assert report.selected_quality == ()
    quality, size = report.verdict.gates
    assert quality.reason.endswith("; steps were chosen on the same samples")
    assert "same samples" not in size.reason
    assert any("chosen and the result is judged on the same 50 samples" in text for text in report.warnings)
    assert "chosen and judged on the same 50" in (folder / "out" / "report.md").read_text()


def test_a_second_dataset_judges_alone(job, monkeypatch):
    monkeypatch.setattr(Float16, "apply", _lucky)
    arrays = _arrays()
    judging = arrays.pop("part") == JUDGES
    judge = {name: array[judging] for name, array in arrays.items()}
    report, _ = job(arrays={name: array[~judging] for name, array in arrays.items()}, judge=judge)
    assert (report.parts.calibrate, report.parts.select, report.parts.judge) == (300, 300, 300)
    assert not report.parts.select_is_judge
    assert _top1(report.steps[0].quality).compressed == 1
    assert _top1(report.quality).compressed == 0
    assert report.verdict.outcome == "fail"


def test_what_only_selects_needs_no_labels(job):
    arrays = _arrays()
    judge = {"x": arrays["x"][:90], "label": arrays["label"][:90]}
    report, _ = job(arrays={"x": arrays["x"][90:]}, judge=judge)
    assert "top1" not in {each.metric for each in report.steps[0].quality}
    assert _top1(report.quality).samples == 90
    assert report.verdict.outcome in {"pass", "inconclusive"}


# What a pass can reach


def reachable(root: Any) -> Iterator[Any]:
    """Walk everything that leads from an object: attributes, items, closures, bound objects, what arrays are views of."""
    seen: dict[int, Any] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | types.BuiltinFunctionType):
            continue
        seen[id(one)] = one
        yield one
        if isinstance(one, types.FunctionType):
            # Not its globals: every module is there.
            todo += [*(one.__closure__ or ()), one.__defaults__, one.__kwdefaults__, one.__dict__]
        elif isinstance(one, np.ndarray):
            todo.append(one.base)
        else:
            todo += gc.get_referents(one)
            todo += vars(one).values() if hasattr(one, "__dict__") else ()


def marks(root: Any) -> set[float]:
    arrays = [each for each in reachable(root) if isinstance(each, np.ndarray) and each.dtype == np.float32]
    return {mark for mark in MARK.values() if any((array == mark).any() for array in arrays)}


@pytest.mark.parametrize("declared", [True, False])
def test_a_pass_that_asks_for_what_judges_cannot_get_it(job, monkeypatch, declared):
    held: list[set[float]] = []
    asked = {}

    def greedy(_step: Any, _model: ir.Model, _observations: Any, context: Context) -> Change:
        held.append(marks(context))
        for name in ("calibration", "select"):
            feeds = [feed["x"][:, 4] for feed in getattr(context, name).batches(64)]
            asked[name] = np.concatenate(feeds)
        asked["judge"] = getattr(context, "judge", None)
        (context.checkpoint / "notes").write_text("kept")
        asked["deadline"] = context.deadline
        return Change(summary="Looked around.", repair=True)

    monkeypatch.setattr(Float16, "apply", greedy)
    arrays = _arrays()
    if not declared:
        part = arrays.pop("part")
        arrays["label"][part == CALIBRATES] = -1
        # Of what is left the job itself parts; every sample is marked by its number.
        arrays["x"][:, 4] = np.where(part == CALIBRATES, MARK[CALIBRATES], np.arange(len(part)))
    opened = []
    genuine = JobData.parted
    monkeypatch.setattr(JobData, "parted", lambda *a, **k: opened.append(genuine(*a, **k)) or opened[-1])
    report, folder = job(arrays=arrays, gates=[])
    parts = opened[0]
    judged = np.concatenate([feed["x"][:, 4] for feed in parts.judge.samples.batches(64)])
    assert len(judged) == report.parts.judge
    assert not set(asked["select"]) & set(judged)
    assert not set(asked["calibration"]) & (set(judged) | set(asked["select"]))
    assert asked["judge"] is None
    assert asked["deadline"] == 1e9
    # What was walked over is not nothing, and the walk finds what is there.
    assert held[0] == ({MARK[CALIBRATES], MARK[SELECTS]} if declared else {MARK[CALIBRATES]})
    if declared:
        assert marks(parts) == set(MARK.values())
    # A step that is over leaves no folder behind.
    assert not (folder / "steps" / "00.checkpoint").exists()


def test_an_older_workers_report_stays_readable(job):
    report, _ = job()
    body = report.model_dump(mode="json")
    for name in ("parts", "selected_quality"):
        del body[name]
    for latency in (body["latency"]["original"], body["latency"]["compressed"]):
        assert 0 < len(latency.pop("runs_ms")) <= 1000
    older = read_report(body)
    assert isinstance(older, Report)
    assert older.parts is None
    from engine.report.markdown import markdown

    assert "Calibrated with 300 samples, judged on 300 others." in markdown(older)


# The best of many


def test_the_interval_of_the_best_of_many_covers_its_true_quality_only_where_it_was_not_chosen():
    """200 candidates of equal true quality: on `judge` the chosen one's interval covers it, on `select` it does not."""
    covered, flattered = 0, 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 2, 1200)
        right = random.random((201, 1200)) < 0.85
        select, judge = slice(0, 400), slice(400, 1200)
        best = right[1 + int(np.argmax(right[1:, select].sum(axis=1)))]
        covered += _covers(_beside(right[0], best, truth, judge))
        flattered += _covers(_beside(right[0], best, truth, select))
    assert covered >= 93
    assert flattered <= 50


def _beside(original, candidate, truth, part):
    how = Output(probabilities=False)
    tasks = [new_task("top1"), new_task("top1")]
    for task, right in zip(tasks, (original, candidate), strict=True):
        decided = np.where(right[part], truth[part], 1 - truth[part])
        task.add(np.eye(2, dtype=np.float32)[decided], truth[part], how)
    return tasks[1].beside(tasks[0])


def _covers(quality):
    return quality.interval.low <= 0 <= quality.interval.high
