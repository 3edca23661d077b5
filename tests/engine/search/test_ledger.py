"""The network as it was given takes part in every choice, and is not left in doubt."""

import pytest

from engine.gate import Gate
from engine.goal import Goal
from engine.report.values import Interval, Quality, Ratio
from engine.search.feasibility import Original
from engine.search.ledger import Ledger
from engine.search.values import Point, Proposal, Told, TrialValues

ORIGINAL = Original(size_bytes=1000, macs=1000, parameters=100)


def quality(metric, value, original=None):
    about = Interval(low=-0.001, high=0.001) if original is not None else Interval(low=value, high=value)
    return Quality(
        metric=metric,
        original=original,
        compressed=value,
        difference=None if original is None else value - original,
        interval=about,
        standard_error=0.0005,
        samples=1000,
        compressed_interval=None if original is None else Interval(low=value - 0.02, high=value + 0.02),
    )


def ledger(*gates, measured):
    values = TrialValues(
        size_bytes=900,
        macs=1000,
        parameters=100,
        latency=Ratio(value=1.5, interval=Interval(low=1.49, high=1.51)),
        p50_ms=3.0,
        quality=measured,
        seconds=1.0,
    )
    proposal = Proposal(point=Point(precision="static"), because="One pass by itself.")
    told = (Told(number=1, proposal=proposal, state="succeeded", values=values, seconds=1.0),)
    return Ledger.of(Goal(subject_to=tuple(Gate(**gate) for gate in gates)), ORIGINAL, told)


@pytest.mark.parametrize(
    ("gate", "measured"),
    [
        ({"metric": "sqnr_db", "rule": "min", "value": 15.0}, quality("sqnr_db", 40.0)),
        ({"metric": "kl", "rule": "max", "value": 0.1}, quality("kl", 0.001)),
        ({"metric": "top1", "rule": "max_drop", "value": 0.01}, quality("top1", 0.9, 0.9)),
        ({"metric": "top1", "rule": "min", "value": 0.8}, quality("top1", 0.9, 0.9)),
    ],
)
def test_the_original_holds_what_a_slower_network_holds(gate, measured):
    found = ledger(gate, measured=(measured,))
    assert found.best().found.rank == 0
    assert found.original_judged().rank == 0


def test_a_metric_that_the_original_lacks_is_not_held_by_it():
    found = ledger({"metric": "top1", "rule": "min", "value": 0.95}, measured=(quality("top1", 0.9, 0.9),))
    assert found.original_judged().rank == 2
