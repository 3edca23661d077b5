"""A search as people see it in a terminal: the report's part of it, a front and trials as the service gives them."""

from io import StringIO

import pytest
from rich.console import Console, Group

from onnxpress import render_report, render_search
from onnxpress.search_documents import Front, Trial

from ..search_reports import search_report

POINT = {"dropped": ["add1", "add2"], "widths": {"g1": 8}, "ranks": {}, "precision": "static", "in_float": ["head"]}
VALUES = {
    "size_bytes": 180_000,
    "macs": 1_234_567,
    "parameters": 9,
    "latency": {"value": 0.5, "interval": {"low": 0.49, "high": 0.51}},
    "peak_memory": 50 << 20,
    "quality": [{"metric": "top1", "output": "y", "original": 0.9, "compressed": 0.896, "difference": -0.004}],
}
PREDICTED = {"latency_ratio": 0.48, "size_bytes": 181_000, "macs": 1_200_000, "damage": 0.1}
PROPOSAL = {"point": POINT, "level": "full", "because": "solver [bold]", "predicted": PREDICTED}


def shown(*parts):
    console = Console(width=320, record=True, file=StringIO())
    console.print(Group(*parts))
    return console.export_text()


def line(text, start):
    return " ".join(next(one for one in text.splitlines() if start in one).split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "2 blocks dropped, 1 group narrower, 8-bit integers with fixed ranges, 1 layer left in float, distilled"),
        (
            {"dropped": [], "widths": {}, "ranks": {}, "in_float": [], "options": {"distill.learning_rate": 0.01}},
            "8-bit integers with fixed ranges, learning rate 0.01, distilled",
        ),
        ({"dropped": [], "widths": {}, "in_float": [], "precision": "float32"}, "in float, distilled"),
        (
            {"dropped": [], "ranks": {"a": 2, "b": 3}, "in_float": []},
            "1 group narrower, 2 layers at a lower rank, 8-bit integers with fixed ranges, distilled",
        ),
    ],
)
def test_a_point_in_words(changes, words):
    assert render_search.point_text({**POINT, **changes}, "full") == words


def test_the_story_the_front_and_the_limits_of_a_report(report):
    report["search"] = search_report(met=False).model_dump(mode="json")
    console = Console(width=200, record=True, file=StringIO())
    render_report.show(report, console)
    text = console.export_text()
    assert "half of the channels" in line(text, "2.50x as fast")
    assert "not shown" in line(text, "2.50x as fast")
    assert "dropped: top1 falls by 3.1 points" in text
    assert "dropped: the process ended" in text
    assert "chosen" in line(text.partition("front: ")[2], "2.00x as fast")
    assert "size at most 200 kB: 240 kB, off by 20 %" in " ".join(text.split())
    assert "narrower layers lose more than 1 point" in text
    assert "the time of 1 network was predicted from measured parts before it was made: off by 4.0 % (median)" in text
    assert (
        "searched for 5 min 21 s: 2 candidates measured, 1 failed. The budget of 600 s is spent. (strategy auto, seed 7)"
        in text
    )


@pytest.mark.parametrize(("minimise", "more"), [("latency", ""), ("memory", "52.4 MB"), ("macs", "1,234,567")])
def test_a_front_has_predicted_beside_measured_and_says_which_is_chosen(minimise, more):
    point = {"number": 4, "level": "full", "because": "solver", "point": POINT, "recipe": None, "predicted": PREDICTED}
    document = {"job": "job_1", "status": "running", "final": False, "minimise": minimise, "chosen": 4}
    front = Front.from_document({**document, "points": [{**point, "measured": VALUES, "stored": True}]})
    text = shown(render_search.front_table(front))
    assert f"front of job_1: the least {minimise} first, so far" in text
    row = line(text, "2.00x as fast")
    assert row.startswith("│ 4 │ 2.00x as fast (1.96 to 2.04) │ 180.0 kB │ ")
    assert "top1 -0.40 points │ 2.08x as fast, 181.0 kB" in row
    assert row.endswith("distilled │ chosen │")
    assert more in row


def test_trials_say_what_came_of_them():
    said = {"number": 1, "state": "succeeded", "proposal": PROPOSAL, "values": VALUES, "seconds": 12.0}
    problem = {"code": "crashed", "title": "The process ended.", "detail": "by signal 9"}
    failed = {"number": 2, "state": "failed", "proposal": PROPOSAL, "values": None, "problem": problem}
    text = shown(render_search.trials_table(map(Trial.from_document, (said, failed))))
    assert "12.0 s" in line(text, "│ 1 │")
    assert "2.00x as fast (1.96 to 2.04)" in line(text, "│ 1 │")
    assert "solver [bold]" in text
    assert "failed" in line(text, "│ 2 │")
    assert "by signal 9" in text
