"""What a body of a job is read as: a recipe, a goal, or what is wrong with it."""

import pytest
from pydantic import ValidationError

from engine.spec import Compress, Search, first_training_step, makes_network, read_spec, steps_of, targets_of

_DROP = {"metric": "top1", "rule": "max_drop", "value": 0.01}


def test_a_body_with_a_goal_is_a_search():
    for kind in ({}, {"kind": "compress"}, {"kind": "search"}):
        spec = read_spec({**kind, "goal": {"minimise": "size", "subject_to": [_DROP], "effort": "low"}})
        assert isinstance(spec, Search)
        assert spec.goal.minimise == "size"
        assert [gate.metric for gate in spec.gates] == ["top1"]
        assert (makes_network(spec), steps_of(spec), first_training_step(spec)) == (True, (), None)
        assert targets_of(spec) == (spec.target,)
    assert isinstance(read_spec({"recipe": "small"}), Compress)


def test_a_stored_search_is_read_as_it_was():
    spec = read_spec({"goal": {"subject_to": [_DROP]}, "space": {"widths": [1, 0.5]}, "seed": 3, "tune": {}})
    assert read_spec(spec.model_dump(mode="json")) == spec


def test_seconds_and_trials_follow_from_the_effort_where_no_budget_says_them():
    assert read_spec({"goal": {"effort": "low"}}).allowed == (180.0, 16)
    assert read_spec({"goal": {"effort": "high"}, "budget": {"max_seconds": 60}}).allowed == (60, 240)
    assert read_spec({"goal": {}, "budget": {"max_trials": 5}}).allowed == (600.0, 5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"goal": {}, "recipe": "small"}, "not both"),
        ({"target": {"provider": "cpu"}}, "give a `goal`"),
        ({"goal": {}, "gates": [_DROP]}, "goal.subject_to"),
        ({"kind": "search", "goal": {"minimise": "parameters"}}, "latency"),
        ({"goal": {}, "strategy": "bayes"}, "tpe"),
        ({"goal": {}, "space": {"widths": [1.5]}}, "less than or equal to 1"),
    ],
)
def test_what_is_wrong_with_a_goal_is_said(body, said):
    with pytest.raises(ValidationError, match=said):
        read_spec(body)
