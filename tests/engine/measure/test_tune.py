"""The search for session options: its tries run for real, its judgement is shown with times that are made up."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from engine.errors import DatasetInvalidError, ModelUnsupportedError
from engine.graph.agreement import Agreement, OutputAgreement
from engine.measure import tune as tune_module
from engine.measure.latency import Turns
from engine.measure.tune import find_options
from engine.report.usage import usage
from engine.runtime.providers import PROVIDERS
from engine.target import Target

FEED = {"x": np.ones((1, 16, 16, 16), np.float32)}
LIMITS = {"max_seconds": 1, "max_threads": 4}


@pytest.fixture
def clock(monkeypatch):
    """Give the times: `clock(milliseconds of options, noise of the second default, whether others took the cores)`."""
    rounds = []

    def set_to(cost, noise=0.0, *, busy=False):
        def take_turns(sessions, _feeds, **_more):
            rounds.append(list(sessions))
            random = np.random.default_rng(len(rounds))
            options = [getattr(each, "options", None) for each in sessions.values()]
            wall = np.array([cost(each, len(rounds)) + random.uniform(0, 1e-3, 60) for each in options])
            wall[1] *= 1 + noise
            return Turns(tuple(sessions), wall, wall, np.full(wall.shape, busy))

        original = tune_module.session

        def session(model, target, *, options):
            opened = original(model, target, options=options)
            opened.options = options
            return opened

        monkeypatch.setattr(tune_module, "session", session)
        monkeypatch.setattr(tune_module, "take_turns", take_turns)
        return rounds

    return set_to


def test_options_add_up_and_the_winner_runs_again(convolutions, clock):
    rounds = clock(
        lambda options, _round: 8 / options.threads + (options.spinning + (options.graph_optimization != "basic")) / 4
    )
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert (found.chosen.threads, found.chosen.spinning, found.chosen.graph_optimization) == (4, False, "basic")
    assert found.gain.value == pytest.approx(2 / 8.5, rel=0.01)
    assert [options.options.threads for options in found.trials[:2]] == [2, 4]
    assert rounds[-1] == ["default", "default again", "0"]
    assert "4 intra-op threads, graph optimisation `basic`, no spinning" in found.reason.replace(
        "no spinning, graph optimisation `basic`", "graph optimisation `basic`, no spinning"
    )


def test_nothing_is_chosen_where_nothing_is_faster(convolutions, clock):
    rounds = clock(lambda options, _round: 2.0 + 0.1 * (options.threads > 1))
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert (found.chosen, found.gain) == (None, None)
    assert "beyond noise" in found.reason
    # Nothing to confirm.
    assert len(rounds) == 3


def test_a_gain_within_the_noise_or_too_small_to_matter_is_none(convolutions, clock):
    clock(lambda options, _round: 2.0 if options.threads == 1 else 1.97)
    assert find_options(convolutions(1), [FEED], Target(), **LIMITS).chosen is None
    clock(lambda options, _round: 2.0 if options.threads == 1 else 1.94, noise=-0.045)
    assert find_options(convolutions(1), [FEED], Target(), **LIMITS).chosen is None


def test_a_busy_machine_hides_a_small_gain_and_not_a_large_one(convolutions, clock):
    clock(lambda options, _round: 2.0 if options.threads == 1 else 1.1, noise=0.03, busy=True)
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert not any(trial.stable for trial in found.trials)
    assert found.chosen.threads > 1
    assert found.gain.value == pytest.approx(0.55, rel=0.01)
    assert "measured on a busy machine" in found.reason
    clock(lambda options, _round: 2.0 if options.threads == 1 else 1.9, noise=0.03, busy=True)
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert found.chosen is None
    assert "beyond noise" in found.reason


def test_luck_is_not_repeated(convolutions, clock):
    clock(lambda options, turn: 1.0 if options.threads == 4 and turn < 4 else 2.0)
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert found.chosen is None
    assert "not faster when they were measured again" in found.reason


def test_the_tries_are_real_sessions(convolutions):
    found = find_options(convolutions(1), [FEED], Target(threads=2), max_seconds=1, max_threads=2)
    tried = [trial.options for trial in found.trials]
    assert tried[0].threads == 1
    assert "parallel" in {options.execution_mode for options in tried}
    assert all(trial.p50_ms > 0 for trial in found.trials)


@pytest.fixture
def with_options(monkeypatch):
    """The processor with what GPU providers have: options of its own, memory to put inputs into, runs that are recorded."""
    line = replace(
        PROVIDERS["cpu"],
        tunable=frozenset({"provider_options", "inputs_on_device"}),
        memory="cpu",
        candidates=({"nhwc": "1"}, {"search": "quick"}, {"wrong": "1"}),
        captures="recorded",
    )
    monkeypatch.setitem(PROVIDERS, "cpu", line)


def test_the_providers_own_options_add_up(convolutions, clock, with_options, monkeypatch):
    def cost(options, _round):
        gains = {"nhwc": 4, "search": 2, "recorded": 1, "wrong": 8}
        return 16 - sum(gains[name] for name in options.provider_options) - options.inputs_on_device / 2

    def agreement(_default, candidate, _feeds):
        apart = float("wrong" in candidate.session.target.provider_options)
        return Agreement({"y": OutputAgreement(apart, 0.0)})

    rounds = clock(cost)
    monkeypatch.setattr(tune_module, "agreement", agreement)
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert found.chosen.provider_options == {"nhwc": "1", "search": "quick", "recorded": "1"}
    assert found.chosen.inputs_on_device
    assert {"wrong"} <= {name for each in found.impossible for name in each.options.provider_options}
    assert "largest value off" in found.impossible[0].reason
    assert "`nhwc=1`, `search=quick`, `recorded=1`" in found.reason
    # On the device, options twice, recorded, and the winner once more: nothing is measured twice.
    assert len(rounds) == 5
    tried = [trial.options.model_dump_json() for trial in found.trials]
    assert len(tried) == len(set(tried))
    assert "recorded" in found.usage


def test_options_that_the_network_does_not_run_with_are_named(convolutions, with_options, monkeypatch):
    original = tune_module.session

    def session(model, target, *, options):
        if options.provider_options:
            raise ModelUnsupportedError("The target cannot record it")
        return original(model, target, options=options)

    monkeypatch.setattr(tune_module, "session", session)
    found = find_options(convolutions(1), [FEED], Target(), max_seconds=0.5)
    assert found.impossible[0].reason == "The target cannot record it"
    assert {trial.options.inputs_on_device for trial in found.trials} == {True}
    assert found.trials[0].p50_ms > 0


def test_what_is_slower_alone_is_not_tried_beside_others(convolutions, clock, with_options, monkeypatch):
    """Each try is a session, and on a GPU that takes seconds."""
    monkeypatch.setattr(tune_module, "agreement", lambda *_: Agreement())
    clock(
        lambda options, _round: 8 - 4 * ("nhwc" in options.provider_options) + 4 * ("wrong" in options.provider_options)
    )
    found = find_options(convolutions(1), [FEED], Target(), **LIMITS)
    assert found.chosen.provider_options == {"nhwc": "1"}
    tried = [set(trial.options.provider_options) for trial in found.trials]
    assert {"wrong"} in tried
    assert {"nhwc", "search"} in tried
    assert {"nhwc", "wrong"} not in tried


def test_options_of_convolutions_are_left_out_where_there_are_none(build, convolutions, with_options, monkeypatch):
    line = replace(PROVIDERS["cpu"], of_convolutions=frozenset({"nhwc"}), captures=None, memory=None)
    monkeypatch.setitem(PROVIDERS, "cpu", line)
    net = build([helper.make_node("Add", ["x", "x"], ["y"])], {"x": [2]}, {"y": TensorProto.FLOAT})
    tried = []

    def session(model, target, *, options):
        tried.extend(options.provider_options)
        raise ModelUnsupportedError("no")

    monkeypatch.setattr(tune_module, "session", session)
    for model, feed, expected in ((net, {"x": np.ones(2, np.float32)}, False), (convolutions(1), FEED, True)):
        tried.clear()
        monkeypatch.setattr(tune_module._Search, "_defaults", {"default": None})
        find_options(model, [feed], Target(), max_seconds=0.1)
        assert ("nhwc" in tried) == expected
        assert "search" in tried


def test_open_axes_are_fixed_where_every_run_has_the_same(build, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "cpu", replace(PROVIDERS["cpu"], tunable=frozenset({"fixed_axes"})))
    net = build([helper.make_node("Add", ["x", "x"], ["y"])], {"x": ["n", "t", 4]}, {"y": TensorProto.FLOAT})
    feeds = [{"x": np.ones((2, length, 4), np.float32)} for length in (3, 5)]
    found = find_options(net, feeds, Target(), max_seconds=0.2)
    assert [trial.options.fixed_axes for trial in found.trials] == [{"n": 2}]
    found = find_options(net, feeds[:1], Target(), max_seconds=0.2)
    assert [trial.options.fixed_axes for trial in found.trials] == [{"n": 2, "t": 3}]
    # The session takes no other sizes then: a reader has to be told.
    options = found.trials[0].options
    with pytest.raises(DatasetInvalidError):
        tune_module.session(net, Target(), options=options).run(feeds[1])
    assert "add_free_dimension_override_by_name('n', 2)" in usage(Target(), options)
