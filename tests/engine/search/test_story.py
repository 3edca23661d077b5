"""What a search tells of its end."""

from engine.search.feasibility import Original
from engine.search.story import tell_story
from engine.search.task import Task
from engine.spec import Search

GATES = [{"metric": "top1", "rule": "max_drop", "value": 0.01}]


def test_limits_are_not_blamed_on_data_where_no_candidate_was_measured():
    spec = Search.model_validate({"kind": "search", "goal": {"minimise": "size", "subject_to": GATES}})
    # Without candidates nothing is asked of the network's space.
    task = Task(spec, None, Original(size_bytes=1000, parameters=250, macs=10))
    found = tell_story(task, [], chosen=None, stopped="The time was used up.", seconds=5.0, met=False)
    assert [(each.held_by, each.best, each.limited_by) for each in found.limits] == [
        (0, None, "No candidate was measured.")
    ]
    assert (found.story, found.front, found.nearest) == ((), (), ())
