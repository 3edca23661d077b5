"""The tasks of the search benchmark are well-formed, and its figures say of a search's report what the bars are about."""

import numpy as np
import pytest

from benchmarks import bars, cases
from benchmarks.cases import Case, Data
from benchmarks.contest import OURS, Result
from benchmarks.search import outcome, samples, tasks
from engine.spec import Compress, Search, read_spec


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_tasks_ask_for_what_the_engine_takes(task):
    entries = [*tasks.ours(task), *tasks.peers(task)]
    assert len({entry.name for entry in entries}) == len(entries)
    settings = {entry.setting for entry in entries}
    assert {bar.setting for bar in task.bars} <= settings
    specs = [read_spec(entry.settings) for entry in entries if entry.maker == OURS]
    searches = [spec for spec in specs if isinstance(spec, Search)]
    assert len(searches) == len(task.searches)
    assert all(spec.allowed[0] == task.seconds and spec.space.train == task.train for spec in searches)
    assert all(isinstance(spec, Search | Compress) for spec in specs)
    assert task.contested().title.endswith(task.title)


def test_everybody_who_trains_or_searches_has_the_same_seconds():
    task = next(each for each in tasks.TASKS if each.name == "residual_cnn")
    entries = {entry.setting: entry.settings for entry in [*tasks.ours(task, 60.0), *tasks.peers(task, 60.0)]}
    assert entries[tasks.GOAL]["budget"] == entries["goal, random"]["budget"] == {"max_seconds": 60.0}
    assert entries["search"]["seconds"] == 60.0
    by_hand = [settings["recipe"]["passes"] for name, settings in entries.items() if name.startswith(tasks.BY_HAND)]
    assert len(by_hand) == 4
    trained = [sum(step.get("seconds") or 0.0 for step in passes) for passes in by_hand]
    assert trained == pytest.approx([60.0] * 4)


def load(_folder):
    label = np.arange(40) % 5
    image = np.arange(40.0).reshape(40, 1)
    return Data({"image": image[:8]}, {"image": image[20:]}, label[20:], {"image": image[10:20]}, label[10:20])


def test_labels_that_choose_do_not_judge():
    case = Case("tiny", "Tiny", load, cases._classes, cases._by_label, 0.01, "nothing")
    data = samples.wider(case, 8, choosing=16).load(None)
    assert data.selecting == len(data.chosen_by) == 16
    assert len(data) == len(data.truth) == 14
    assert data.select["image"].ravel().tolist() == list(np.arange(10.0, 26))
    assert data.test["image"].ravel().tolist() == list(np.arange(26.0, 40))
    assert np.array_equal(data.truth, np.arange(26, 40) % 5)
    assert np.array_equal(data.chosen_by, np.arange(10, 26) % 5)
    with pytest.raises(ValueError, match="20 samples that judge; 11 of them cannot choose"):
        samples.wider(case, 8, choosing=21).load(None)


def line(trial, ratio, difference, tried=None):
    quality = [{"metric": "top1", "difference": difference}]
    measured = {"latency_ratio": ratio, "quality": quality}
    return {"trial": trial, "level": "refit", "tried": tried or f"candidate {trial}", "measured": measured}


def search(setting, story, *, met=True, seconds=10.0, error=0.04, **more):
    report = {
        "budget": {"max_seconds": 10.0},
        "trials": {"succeeded": len(story), "failed": 0, "cancelled": 0},
        "story": story,
        "chosen": 1,
        "met": met,
        "nearest": [],
        "limits": [],
        "certificates": {"median_error": error, "compared": [{}]},
        "stopped": "the budget is spent.",
        **more,
    }
    return Result(OURS, setting, path="-", told={"search": report, "seconds": seconds})


def test_a_front_is_worth_the_area_that_it_dominates():
    assert outcome.hypervolume([(0.5, 0.05)], (1.0, 0.1)) == pytest.approx(0.25)
    # What another one beats in both adds nothing; nor does what is beyond the worst.
    points = [(0.5, 0.05), (0.6, 0.06), (0.25, 0.08), (2.0, 0.0), (0.1, 0.2)]
    assert outcome.hypervolume(points, (1.0, 0.1)) == pytest.approx((0.75 * 0.02 + 0.5 * 0.03) / 0.1)
    assert outcome.hypervolume([], (1.0, 0.1)) == 0


def test_searches_are_held_to_chance_to_themselves_and_to_their_budget():
    own = search("goal, TPE", [line(1, 0.5, -0.05), line(2, 0.4, -0.01)], seconds=12.0)
    chance = search("goal, random", [line(1, 0.5, -0.05), line(2, 0.9, 0.01)])
    original = Result("fp32", "original", path="-")
    assert outcome.beside_random(own, [original, own, chance]) == pytest.approx(0.54 / 0.30)
    assert outcome.of_budget(own, []) == pytest.approx(1.2)
    assert outcome.prediction_error(own, []) == 0.04
    again = search("again", [line(1, 0.6, -0.02), line(2, 0.4, -0.01, "something else"), line(3, 0.4, -0.01)])
    assert outcome.same_candidates_as("again")(own, [original, own, again]) == pytest.approx(0.5)
    assert outcome.same_candidates_as("absent")(own, [original, own, again]) is None
    # A recipe has no report of a search.
    recipe = Result(OURS, "by hand", path="-", told={"search": None})
    for figure in (outcome.of_budget, outcome.prediction_error, outcome.nearest, outcome.beside_random):
        assert figure(recipe, [original, recipe, chance]) is None


def test_a_goal_that_is_not_met_is_answered_with_what_comes_near_and_what_stands_against_it():
    limits = [{"limit": "p50 <= 2.5 %", "held_by": 0, "limited_by": "the stem takes half of the time."}]
    near = [{"trial": 1, "misses": [{"limit": "p50 <= 2.5 %"}]}]
    missed = search("goal", [line(1, 0.5, -0.05)], met=False, nearest=near, limits=limits)
    assert outcome.nearest(missed, []) == 1
    assert outcome.explained(missed, []) == 1
    (words,) = outcome.lines([missed])
    assert (
        "the goal is not met; p50 <= 2.5 %: the stem takes half of the time; ended because the budget is spent."
        in words
    )
    # Whoever claims to have met it names nothing.
    assert outcome.nearest(search("goal", [line(1, 0.5, 0.0)], nearest=near), []) is None


def test_speeds_are_held_beside_peers_and_beside_single_passes_that_lose_no_more():
    def raced(maker, setting, ratio, change):
        latency = {"stable": True, "ratios": {"p50": {"value": ratio}}}
        return Result(maker, setting, path="-", score={"value": 0.9 + change, "change": change}, latency=latency)

    goal = raced(OURS, "goal", 0.25, -0.005)
    results = [
        Result("fp32", "original", path="-"),
        goal,
        raced(OURS, "INT8 only: static", 0.5, -0.004),
        raced(OURS, "INT8 only: static, all layers", 0.2, -0.02),
        raced("onnxruntime", "INT8 only: static u8s8", 0.4, -0.3),
    ]
    assert bars.faster_than_peers(goal, results) == pytest.approx(1.6)
    assert bars.faster_than_single_passes(goal, results) == pytest.approx(2.0)
    assert bars.needs([bars.Bar("goal", "speed", bars.faster_than_peers, 1.0)], "INT8 only: static u8s8")
