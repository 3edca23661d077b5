"""A whole search in one process: a network that a goal asks for, on real data, again after a kill, and where nothing can be met."""

import json
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.job import search, timing, trial
from engine.job.frame import Frame
from engine.measure import memory
from engine.report.search import SearchReport
from engine.runtime.host_lock import HostLock
from engine.search import kernel_times
from engine.search.values import Told

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fashion-mnist"
_DROP = {"metric": "top1", "rule": "max_drop", "value": 0.05, "confidence": 0.8}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(trial, "_TIMED_S", dict.fromkeys(trial._TIMED_S, 0.05))
    for name in ("STEP_TIMED_S", "RESULT_TIMED_S"):
        monkeypatch.setattr(timing, name, 0.1)
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.05)
    monkeypatch.setattr(kernel_times, "_PROFILED_RUNS", 5)


@pytest.fixture
def trained(workspace):
    """A trained residual network with labelled samples, in a job's folder of this name."""

    def make(name="job"):
        with np.load(EXAMPLE / "data.npz", allow_pickle=False) as arrays:
            labelled = arrays["label"] >= 0
            few = {each: arrays[each][labelled][:400] for each in arrays.files}
        return workspace((EXAMPLE / "residual_cnn.onnx").read_bytes(), name=name, metric="top1", **few)

    return make


def asked(*, gates=(_DROP,), minimise="size", trials=5, seconds=900, **more):
    """A search that ends by its trials: how fast the machine is does not change what is tried."""
    space = {
        "widths": [1.0, 0.5],
        "drop_blocks": False,
        "ranks": [],
        "precisions": ["float32", "weights8"],
        "train": False,
    }
    return engine.read_spec(
        {
            "goal": {"minimise": minimise, "subject_to": list(gates)},
            "budget": {"max_trials": trials, "max_seconds": seconds},
            "space": {**space, **more.pop("space", {})},
            **more,
        }
    )


def found(spec, folder, events=None):
    return engine.run(spec, folder, (events if events is not None else []).append)


def candidates(folder):
    told = [
        Told.model_validate_json(path.read_bytes()) for path in sorted((folder / "steps/search").glob("trial-*.json"))
    ]
    return [(each.proposal.stage, each.proposal.point) for each in told]


def test_a_search_gives_the_least_that_holds_every_limit_and_says_how(trained):
    folder, events = trained(), []
    report = found(asked(), folder, events)
    assert (report.kind, report.unchanged, report.verdict.outcome) == ("search", False, "pass")
    story = report.search
    assert isinstance(story, SearchReport)
    assert story.trials.succeeded == 5
    assert story.met
    assert [line.trial for line in story.story] == [1, 2, 3, 4, 5]
    by_number = {line.trial: line for line in story.story}
    holding = [line for line in story.story if line.holds]
    assert by_number[story.chosen].measured.size_bytes == min(line.measured.size_bytes for line in holding)
    # The best single pass is among the candidates, so the result is no larger.
    single = next(line for line in story.story if line.tried == "weights in 8 bits")
    assert report.size.compressed <= single.measured.size_bytes
    assert (folder / "out/model.onnx").stat().st_size == report.size.compressed
    # Every point of the front is a recipe that an ordinary job takes.
    for point in story.front:
        engine.read_spec({"recipe": {"passes": list(point.recipe)}})
    assert [event["number"] for event in events if event["type"] == "trial_ended"] == [1, 2, 3, 4, 5]
    stored = json.loads((folder / "out/report.json").read_bytes())
    assert engine.read_report(stored) == report


def test_one_seed_gives_the_same_candidates_in_the_same_order(trained):
    first, second = trained("first"), trained("second")
    found(asked(), first)
    found(asked(), second)
    assert candidates(first) == candidates(second)
    assert len(candidates(first)) == 5


class _Killed(BaseException):
    """Stands for the end of the process."""


def test_a_search_goes_on_after_a_kill_where_it_was(trained, monkeypatch):
    whole, broken = trained("whole"), trained("broken")
    spec = asked()
    report = found(spec, whole)
    genuine, begun = search.tried, []

    def dies(bench, proposal):
        begun.append(proposal)
        if len(begun) == 4:
            raise _Killed
        return genuine(bench, proposal)

    monkeypatch.setattr(search, "tried", dies)
    with pytest.raises(_Killed):
        found(spec, broken)
    assert len(candidates(broken)) == 3
    resumed = found(spec, broken)
    # The trial that was being made is made again, and no other.
    assert len(begun) == 6
    assert begun[3] == begun[4]
    assert candidates(broken) == candidates(whole)
    assert resumed.search.chosen == report.search.chosen


def test_a_trial_that_kills_the_process_twice_is_left_out(trained, monkeypatch):
    folder, begun = trained(), []
    genuine = search.tried

    def dies(bench, proposal):
        begun.append(proposal)
        if proposal == begun[0]:
            raise _Killed
        return genuine(bench, proposal)

    monkeypatch.setattr(search, "tried", dies)
    for _ in range(2):
        with pytest.raises(_Killed):
            found(asked(trials=3), folder)
    report = found(asked(trials=3), folder)
    assert report.search.trials.failed == 1
    assert "died twice" in report.search.story[0].why


def test_a_goal_that_cannot_be_met_gives_the_nearest_and_what_limits_each(trained):
    gates = (_DROP, {"metric": "size_bytes", "rule": "max", "value": 1000})
    report = found(asked(gates=gates), trained())
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
    spec = asked(gates=(), trials=3, space={"precisions": ["float32", "static", "dynamic", "weights8"]})
    report = found(spec, workspace(residual_cnn()))
    tried = [line.tried for line in report.search.story]
    assert not any("fixed ranges" in each for each in tried)
    assert report.search.chosen is not None


def test_the_best_is_distilled_where_pytorch_is(trained):
    spec = asked(trials=12, seconds=30, space={"train": True})
    folder = trained()
    report = found(spec, folder)
    trained_ones = [stage for stage, _ in candidates(folder) if stage in {"short", "full"}]
    assert trained_ones
    assert any("distilled for" in line.tried for line in report.search.story)


def test_a_turn_at_the_end_asks_for_its_network_first(trained, tmp_path):
    spec, folder = asked(trials=1), trained()
    frame = Frame(folder, lambda _event: None, HostLock(None), memory.probe)
    pieces, told = {}, []
    for _ in range(40):
        turn = engine.search_turn(spec, folder, lambda _event: None, told=told, pieces=pieces, elapsed_s=1.0, workers=2)
        if turn["do"] == "measure_variants":
            for part in turn["parts"]:
                pieces[part] = engine.measure_variants(spec, folder, lambda _event: None, part=part)
        elif turn["do"] == "try_proposals":
            [proposal] = turn["proposals"]
            values = engine.try_candidate(
                spec, folder, lambda _event: None, proposal=engine.Proposal.model_validate(proposal)
            )
            done = {"state": "succeeded", "values": values.model_dump(mode="json"), "seconds": 1.0}
            told.append({"number": 1, "proposal": proposal, **done})
        else:
            break
    assert turn == {"do": "finish", "trial": 1, "because": "All 1 trials were made."}
    (folder / "trial").mkdir()
    (folder / "out/model.onnx").rename(folder / "trial/model.onnx")
    last = engine.search_turn(spec, folder, lambda _event: None, told=told, pieces=pieces, elapsed_s=2.0, workers=2)
    report = engine.read_report(last["report"])
    assert report.search.chosen == 1
    assert (frame.out / "model.onnx").exists()
