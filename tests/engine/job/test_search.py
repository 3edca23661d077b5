"""A whole search in one process: a network that a goal asks for, on real data, again after a kill, and where nothing can be met."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

import engine
from engine.job import search, timing, trial
from engine.measure import latency
from engine.report.run_facts import Memory
from engine.report.search import SearchReport
from engine.search import clock, kernel_times
from engine.search.values import Proposal, Told

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fashion-mnist"
_DROP = {"metric": "top1", "rule": "max_drop", "value": 0.05, "confidence": 0.8}
# Where it does not matter what is tried: passes by themselves, of which nothing is measured before.
_NARROW = {"widths": [1], "precisions": ["float32", "float16", "weights8"]}
_LIKE = {"metric": "top1_agreement", "rule": "min", "value": 0.5, "confidence": 0.8}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(latency, "_no_garbage_collection", nullcontext)
    monkeypatch.setattr(trial, "_TIMED_S", dict.fromkeys(trial._TIMED_S, 0.05))
    for name in ("STEP_TIMED_S", "RESULT_TIMED_S"):
        monkeypatch.setattr(timing, name, 0.1)
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.05)
    monkeypatch.setattr(kernel_times, "_PROFILED_RUNS", 5)


@pytest.fixture
def trained(workspace):
    """A trained residual network with labelled samples."""
    with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
        labelled = arrays["label"] >= 0
        few = {each: arrays[each][labelled][:300] for each in arrays.files}
    return workspace((EXAMPLE / "residual_cnn.onnx").read_bytes(), metric="top1", **few)


@pytest.fixture
def tiny(workspace, residual_cnn, images):
    """A small network and samples without labels, in a job's folder of this name."""
    return lambda name="job": workspace(residual_cnn(), name=name, image=images(96))


def asked(*, gates=(_LIKE,), trials=3, **more):
    """A search that ends by its trials: how fast the machine is does not change what is tried."""
    space = {
        "widths": [1, 0.5],
        "drop_blocks": False,
        "ranks": [],
        "precisions": ["float32", "float16"],
        "train": False,
    }
    return engine.read_spec(
        {
            "goal": {"minimise": "size", "subject_to": list(gates)},
            "budget": {"max_trials": trials, "max_seconds": 900},
            "space": {**space, **more.pop("space", {})},
            **more,
        }
    )


def found(spec, folder, events=None):
    return engine.run(spec, folder, (events if events is not None else []).append, probe=_probe)


def _probe(*_):
    """Stand for a process of its own, which takes a second."""
    return Memory(peak_rss_bytes=1 << 20, load_ms=1, first_run_ms=1)


def candidates(folder):
    told = [
        Told.model_validate_json(path.read_bytes()) for path in sorted((folder / "steps/search").glob("trial-*.json"))
    ]
    return [(each.proposal.stage, each.proposal.point) for each in told]


def test_a_search_gives_the_least_that_holds_every_limit_and_says_how(trained):
    events = []
    layers = [node.name for node in onnx.load(EXAMPLE / "residual_cnn.onnx").graph.node if node.op_type == "Conv"]
    report = found(asked(gates=(_DROP,), space={"exclude": layers[:-2]}), trained, events)
    assert (report.kind, report.unchanged, report.verdict.outcome) == ("search", False, "pass")
    story = report.search
    assert isinstance(story, SearchReport)
    assert story.met
    assert [line.trial for line in story.story] == list(range(1, story.trials.succeeded + 1))
    by_number = {line.trial: line for line in story.story}
    holding = [line for line in story.story if line.holds]
    assert by_number[story.chosen].measured.size_bytes == min(line.measured.size_bytes for line in holding)
    # The best single pass is among the candidates, so the result is no larger.
    single = next(line for line in story.story if line.tried == "16-bit floats")
    assert report.size.compressed <= single.measured.size_bytes
    assert (trained / "out/model.onnx").stat().st_size == report.size.compressed
    # Every point of the front is a recipe that an ordinary job takes.
    for point in story.front:
        engine.read_spec({"recipe": {"passes": list(point.recipe)}})
    ended = [event["number"] for event in events if event["type"] == "trial_ended"]
    assert ended == [line.trial for line in story.story]
    stored = json.loads((trained / "out/report.json").read_bytes())
    assert engine.read_report(stored) == report


class _Killed(BaseException):
    """Stands for the end of the process."""


def test_a_search_goes_on_after_a_kill_where_it_was_and_one_seed_gives_the_same_candidates(tiny, monkeypatch):
    whole, broken, spec = tiny("whole"), tiny("broken"), asked(trials=2, space=_NARROW)
    report = found(spec, whole)
    genuine, begun = search.tried, []

    def dies(bench, proposal):
        begun.append(proposal)
        if len(begun) == 2:
            raise _Killed
        return genuine(bench, proposal)

    monkeypatch.setattr(search, "tried", dies)
    with pytest.raises(_Killed):
        found(spec, broken)
    assert len(candidates(broken)) == 1
    resumed = found(spec, broken)
    # The trial that was being made is made again, and no other.
    assert len(begun) == len(candidates(whole)) + 1
    assert begun[1].point == begun[2].point
    assert candidates(broken) == candidates(whole)
    assert resumed.search.chosen == report.search.chosen


def test_a_trial_that_kills_the_process_twice_is_left_out(tiny, monkeypatch):
    folder, begun = tiny(), []
    genuine = search.tried

    def dies(bench, proposal):
        begun.append(proposal)
        if proposal.point == begun[0].point:
            raise _Killed
        return genuine(bench, proposal)

    monkeypatch.setattr(search, "tried", dies)
    spec = asked(trials=2, space=_NARROW)
    for _ in range(2):
        with pytest.raises(_Killed):
            found(spec, folder)
    report = found(spec, folder)
    assert report.search.trials.failed == 1
    assert "died twice" in report.search.story[0].why


def test_a_goal_that_cannot_be_met_gives_the_nearest_and_what_limits_each(tiny):
    gates = (_LIKE, {"metric": "size_bytes", "rule": "max", "value": 1000})
    report = found(asked(gates=gates, trials=2, space=_NARROW), tiny())
    story = report.search
    assert report.verdict.outcome == "fail"
    assert not story.met
    assert not report.unchanged
    assert story.chosen is not None
    assert story.nearest
    assert all(near.misses for near in story.nearest)
    size = next(each for each in story.limits if each.gate.metric == "size_bytes")
    assert size.held_by == 0
    assert size.best == min(line.measured.size_bytes for line in story.story if line.measured)
    assert size.limited_by


def test_without_data_only_what_needs_none_is_tried(workspace, residual_cnn):
    space = {"precisions": ["float32", "static", "float16"], "drop_blocks": True, "ranks": [0.5]}
    report = found(asked(gates=(), trials=4, space=space), workspace(residual_cnn()))
    # Random inputs say nothing of what may be cut, nor what the network as it is would be tried for.
    assert all(line.tried.startswith("16-bit floats") for line in report.search.story)
    assert report.search.chosen is not None


def test_candidates_are_distilled_where_pytorch_is(tiny, monkeypatch):
    monkeypatch.setattr(clock, "_SHORT_MOST_S", 1.0)
    folder = tiny()
    report = found(asked(trials=7, space={"train": True}), folder)
    assert {stage for stage, _ in candidates(folder)} >= {"single", "round", "short"}
    assert any("distilled for 1 s" in line.tried for line in report.search.story)
    distilled = next(point for point in report.search.story if point.level == "short")
    assert distilled.state == "succeeded"


def test_a_turn_at_the_end_asks_for_its_network_first(tiny):
    spec, folder = asked(trials=1, space=_NARROW), tiny()
    pieces, told = {}, []

    def turned():
        return engine.search_turn(spec, folder, _unheard, told=told, pieces=pieces, elapsed_s=1.0, workers=2)

    while (turn := turned())["do"] != "finish":
        for part in turn.get("parts", ()):
            pieces[part] = engine.measure_variants(spec, folder, _unheard, part=part)
        for proposal in turn.get("proposals", ()):
            values = engine.try_candidate(spec, folder, _unheard, proposal=Proposal.model_validate(proposal))
            done = {"state": "succeeded", "values": values.model_dump(mode="json"), "seconds": 1.0}
            told.append({"number": len(told) + 1, "proposal": proposal, **done})
    assert turn == {"do": "finish", "trial": 1, "because": "All 1 trials were made."}
    (folder / "trial").mkdir()
    (folder / "out/model.onnx").rename(folder / "trial/model.onnx")
    report = engine.read_report(turned()["report"])
    assert report.search.chosen == 1
    assert (folder / "out/model.onnx").exists()


def _unheard(_event):
    """Take no notice."""
