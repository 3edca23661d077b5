"""What a search tells of its end."""

from engine.report.values import Interval, Quality
from engine.search.feasibility import Original
from engine.search.story import tell_story
from engine.search.task import Task
from engine.search.values import Point, Proposal, Told, TrialValues
from engine.spec import Search

from .test_cascade import World

GATES = [{"metric": "top1", "rule": "max_drop", "value": 0.01}]


def _told(number, lost, spread, size):
    """Give a trial with what it loses, and how far the true loss may be from that."""
    quality = Quality(
        metric="top1",
        original=0.9,
        compressed=0.9 - lost,
        difference=-lost,
        interval=Interval(low=-lost - spread, high=-lost + spread),
        standard_error=spread / 2,
        samples=300,
        output="scores",
        kind="classes",
    )
    values = TrialValues(size_bytes=size, macs=10, parameters=250, latency=None, quality=(quality,), seconds=1.0)
    proposal = Proposal(point=Point(precision="weights8"), because="One pass by itself.")
    return Told(number=number, proposal=proposal, state="succeeded", values=values)


def test_what_samples_are_too_few_to_tell_is_neither_held_nor_missed():
    spec = Search.model_validate({"kind": "search", "goal": {"minimise": "size", "subject_to": GATES}})
    task = World().task(spec)
    told = [_told(1, 0.001, 0.002, 900), _told(2, 0.006, 0.01, 500), _told(3, 0.05, 0.001, 400)]
    story = tell_story(task, told, chosen=1, stopped="The time was used up.", seconds=5.0, met=True).story
    assert [line.holds for line in story] == [True, False, False]
    assert "These samples are too few to say that it holds “top1 drops by at most 1 point”." in story[1].why
    assert "It holds every limit" not in story[1].why
    assert "It misses “top1 drops by at most 1 point”" in story[2].why
    found = tell_story(task, told[:2], chosen=1, stopped="The time was used up.", seconds=5.0, met=True)
    assert [(each.held_by, each.limited_by) for each in found.limits] == [
        (1, "None is outside; of 1 these samples are too few to say that it is inside.")
    ]


def test_limits_are_not_blamed_on_data_where_no_candidate_was_measured():
    spec = Search.model_validate({"kind": "search", "goal": {"minimise": "size", "subject_to": GATES}})
    # Without candidates nothing is asked of the network's space.
    task = Task(spec, None, Original(size_bytes=1000, parameters=250, macs=10))
    found = tell_story(task, [], chosen=None, stopped="The time was used up.", seconds=5.0, met=False)
    assert [(each.held_by, each.best, each.limited_by) for each in found.limits] == [
        (0, None, "No candidate was measured.")
    ]
    assert (found.story, found.front, found.nearest) == ((), (), ())
