"""A report's figures are Plotly's JSON with the report's own numbers, and each can be read without being seen."""

import json
from dataclasses import replace

import pytest

from engine import figures, layers
from engine.report.figures.figure import GOOD, QUIET, shortened, with_room, wrapped
from engine.report.figures.search import PICK, candidates, front_figure, story_figure
from engine.report.values import Interval
from tests.report_documents import report
from tests.search_reports import search_report

SEARCHED = report().model_copy(update={"search": search_report()})


def of(name, shown):
    return next(figure for figure in figures(shown) if figure.name == name)


def test_every_part_of_a_report_has_its_figure():
    names = [figure.name for figure in figures(SEARCHED)]
    assert names == [
        "before-after", "front", "latency", "latency-ratio", "quality", "fidelity", "story", "timeline", "training-2",
        "sensitivity", "bytes",
    ]  # fmt: skip
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("figure", figures(SEARCHED), ids=lambda figure: figure.name)
def test_a_figure_is_json_and_is_told_in_words_and_as_a_table(figure):
    json.dumps(figure.model_dump(), allow_nan=False)
    assert figure.caption.endswith(".")
    assert figure.rows
    assert {len(row) for row in figure.rows} == {len(figure.head)}
    assert all(trace["type"] in {"bar", "scatter", "violin"} for trace in figure.data)


def test_costs_are_shares_of_the_originals():
    figure = of("before-after", report())
    shares = dict(zip(figure.data[0]["y"], figure.data[0]["x"], strict=True))
    assert shares["size"] == 25.0
    assert shares["latency p50"] == 50.0
    assert ("size", "400.0 kB", "100.0 kB", "4.00x smaller") in figure.rows


def test_ratios_have_their_interval_and_what_the_original_reads_beside_itself():
    figure = of("latency-ratio", report())
    trace = figure.data[0]
    assert (trace["x"][0], round(trace["error_x"]["array"][0], 6)) == (0.5, 0.03)
    assert round(trace["error_x"]["arrayminus"][0], 6) == 0.02
    assert (figure.layout["shapes"][0]["x0"], figure.layout["shapes"][0]["x1"]) == (0.98, 1.02)


def test_runs_of_older_reports_are_told_by_their_quantiles():
    latency = report().latency
    without = latency.model_copy(update={"original": latency.original.model_copy(update={"runs_ms": ()})})
    kinds = [trace["type"] for trace in of("latency", report().model_copy(update={"latency": without})).data]
    assert kinds == ["scatter", "violin"]


def test_points_of_the_front_carry_the_number_that_picks_them():
    figure = of("front", SEARCHED)
    line = next(trace for trace in figure.data if trace["name"] == "the front")
    assert line["customdata"] == [3]
    assert "prune_channels" in line["text"][0]
    assert (line["x"], [round(each, 6) for each in line["y"]]) == ([0.5], [-0.4])
    others = next(trace for trace in figure.data if trace["name"] == "others")
    assert others["customdata"] == [1]


def test_a_search_that_has_measured_nothing_has_no_front():
    waiting = [one for one in candidates(search_report()) if one.measured is None]
    assert front_figure("latency", waiting, None) is None
    assert story_figure("latency", (), None) is None
    assert [trace["name"] for trace in story_figure("latency", waiting, None).data] == ["failed"]


def test_while_a_search_goes_on_nothing_is_picked_or_held_against_limits():
    tried = [replace(one, holds=None) for one in candidates(search_report())]
    live = front_figure("size", tried, None, live=True)
    assert PICK not in live.caption
    assert PICK in front_figure("size", tried, 3).caption
    assert (live.layout["xaxis"]["tickformat"], live.layout["xaxis"]["ticksuffix"]) == ("~s", "B")
    story = story_figure("size", tried, None)
    assert "within" not in story.caption
    assert "tried" in {trace["name"] for trace in story.data}


def test_values_that_hardly_differ_have_room_around_them():
    assert with_room([100.0, 101.0]) == {"range": [pytest.approx(94.95), pytest.approx(106.05)]}
    assert with_room([100.0, 120.0]) == with_room([0.0]) == {}


def test_times_within_noise_are_neither_good_nor_bad():
    latency = report().latency
    ratio = latency.ratios["p95"].model_copy(update={"value": 1.03, "interval": Interval(low=0.9, high=1.1)})
    noisy = latency.model_copy(update={"ratios": {**latency.ratios, "p95": ratio}})
    figure = of("before-after", report().model_copy(update={"latency": noisy}))
    colours = dict(zip(figure.data[0]["y"], figure.data[0]["marker"]["color"], strict=True))
    assert (colours["latency p50"], colours["latency p95"]) == (GOOD, QUIET)


def test_runs_far_beyond_the_tail_lie_outside_of_the_picture():
    latency = report().latency
    runs = (*latency.original.runs_ms[:-1], 100 * latency.original.p99_ms)
    slow = latency.model_copy(update={"original": latency.original.model_copy(update={"runs_ms": runs})})
    figure = of("latency", report().model_copy(update={"latency": slow}))
    assert figure.layout["xaxis"]["range"][1] < 2 * latency.original.p99_ms
    assert "1 of all runs took more than" in figure.caption


def test_layers_that_take_most_come_first():
    found = layers(report())
    assert [layer.node for layer in found] == ["body", "stem", "gone"]
    assert (found[0].precision, found[0].sqnr_db, found[0].sensitivity) == ("int8 weights, uint8", 25.0, 0.02)


def test_refused_steps_say_why():
    rows = of("timeline", report()).rows
    assert rows[2] == ("3: prune_weights", "refused", "1.0", "Zeros save no time here. Leave it out.")


def test_names_are_shortened_in_the_middle_and_markup_is_no_markup():
    assert len(shortened("layer." * 20)) <= 40
    assert shortened("stem") == "stem"
    lines = wrapped("<b>bold & brave</b> " + "word " * 20, 30)
    assert lines.startswith("&lt;b>bold &amp; brave&lt;/b>")
    assert max(map(len, lines.replace("&lt;", "<").replace("&amp;", "&").split("<br>"))) <= 30
