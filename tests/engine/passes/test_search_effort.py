"""How much a search runs networks: bounded by time, and told."""

import time

import numpy as np
import pytest
from onnx import helper

from engine.quantize import effort


def _one_layer(tools):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return tools.build(nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w": np.ones((4, 3), np.float32)})


@pytest.fixture
def choose(tools, monkeypatch):
    def make(seconds, layers=60, left=None):
        monkeypatch.setattr(effort, "_seconds_per_sample", lambda *_: seconds)
        model, samples = _one_layer(tools), tools.Feeds(x=np.zeros((400, 4), np.float32))
        deadline = None if left is None else time.monotonic() + left
        given = effort.replace(tools.context(model, samples), deadline=deadline)
        return effort.choose(model, layers, given)

    return make


def test_a_fast_network_is_searched_in_full(choose):
    found = choose(1e-4)
    assert (found.refined, found.fidelity_samples, found.said) == ("all", 256, None)


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.1])
def test_a_slow_network_is_run_less_and_that_is_said(choose, seconds):
    found = choose(seconds)
    # A full search over a detector of 60 layers that takes 50 ms would run it for an hour.
    assert found.cost(60, 400) <= 60
    assert found.refined != "all"
    assert f"compared on {found.fidelity_samples} samples" in found.said


def test_more_time_is_never_taken_than_is_left(choose):
    assert choose(1e-3).fidelity_samples > choose(1e-3, left=30).fidelity_samples


@pytest.fixture
def choose_refinement(tools, monkeypatch):
    def make(seconds, *, equalise=True):
        monkeypatch.setattr(effort, "_seconds_per_sample", lambda *_: seconds)
        model, samples = _one_layer(tools), tools.Feeds(x=np.zeros((64, 4), np.float32))
        return effort.choose_refinement(model, 6, tools.context(model, samples), equalise=equalise)

    return make


def test_the_refinement_of_one_network_is_bounded_too(choose_refinement):
    fast, slow = choose_refinement(1e-3), choose_refinement(0.25)
    assert (fast.equalise, fast.fit_samples, fast.said) == (True, 96, None)
    assert slow.cost(6, 64) <= 30
    assert not slow.equalise
    assert (
        slow.said == "A sample takes about 250 ms, so weights were rounded by 16 samples and equalisation was left out."
    )
    assert "equalisation was left out" in choose_refinement(1e-3, equalise=False).said


def test_more_cores_are_more_samples_in_the_same_time(tools, monkeypatch):
    monkeypatch.setattr(effort, "_seconds_per_sample", lambda *_: 0.3)
    model, samples = _one_layer(tools), tools.Feeds(x=np.zeros((64, 4), np.float32))
    given = tools.context(model, samples)
    more = effort.replace(given, runs_on=given.target.model_copy(update={"threads": 16}))
    assert effort.choose_refinement(model, 6, more, equalise=True).fit_samples == 96
    assert effort.choose_refinement(model, 6, given, equalise=True).fit_samples < 96


def test_times_that_are_nearly_the_same_choose_the_same(choose):
    assert choose(0.0301) == choose(0.0345)


def test_the_time_of_a_sample_is_measured(tools):
    model, samples = _one_layer(tools), tools.Feeds(x=np.zeros((40, 4), np.float32))
    assert effort._seconds_per_sample(model, samples, tools.context(model, samples)) > 0
