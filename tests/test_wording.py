"""One report says the same figures in the same words: on the terminal, in Markdown, in the file and on the page."""

import re
from html import unescape
from io import StringIO

import pytest
from rich.console import Console

import engine
from api.pages import rendering
from engine.report import wording as of_service
from engine.report.markdown import measures
from onnxpress import formatting, render_report
from onnxpress import wording as of_client
from tests.report_documents import report
from tests.search_reports import search_report

NUMBERS = [0.0, 1e-4, 0.4999, 0.5, 0.996, 1.0, 1.004, 1.0051, 2.0, 9.9999, 10.0, 729_001.0, 3e9]


def test_both_sides_have_the_same_words():
    shared = {
        "size",
        "milliseconds",
        "share",
        "metric_value",
        "change",
        "limit_value",
        "speed_between",
        "times_smaller",
    }
    shared |= {"times_less", "parameters_left", "rough_duration", "place_text", "gate_value"}
    assert shared <= {*vars(of_client)} & {*vars(of_service)}
    for ours, theirs in ((of_client, of_service), (of_service, of_client)):
        for value in NUMBERS:
            for name in ("size", "milliseconds", "share", "limit_value", "rough_duration"):
                assert getattr(ours, name)(value) == getattr(theirs, name)(value), name
            for place in ((0, value, 1), (3, value, 2), (1, None, 0)):
                assert ours.place_text(*place) == theirs.place_text(*place)
            for metric in ("top1", "mse", "cosine", "sqnr_db"):
                assert ours.metric_value(metric, value) == theirs.metric_value(metric, value)
                assert ours.change(metric, -value) == theirs.change(metric, -value)
            for metric in ("top1", "mse", "sqnr_db", "size_bytes", "latency_p99", "parameters"):
                for rule in ("max_drop", "max_ratio", "min", "max"):
                    assert ours.gate_value(metric, rule, value) == theirs.gate_value(metric, rule, value)
            for other in NUMBERS[1:]:
                for name in ("times_smaller", "times_less", "parameters_left"):
                    assert getattr(ours, name)(value or 1, other) == getattr(theirs, name)(value or 1, other), name
                assert ours.speed_between(other, other / 2, other * 2) == theirs.speed_between(
                    other, other / 2, other * 2
                )


def test_spans_of_time_are_told_alike_on_pages_and_by_the_client():
    for seconds in (0.002, 0.0456, 0.25, 1.0, 9.87, 59.4, 60, 185, 3599, 3600, 7500, 100_000):
        assert rendering.duration(seconds) == formatting.duration(seconds)


def plain(markup):
    """Give what is read of Markdown or HTML."""
    text = unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", "\n", markup, flags=re.DOTALL))
    return re.sub(r"[`*\\]", "", text)


@pytest.fixture(scope="module")
def told():
    return report().model_copy(update={"search": search_report(), "kind": "search"})


@pytest.fixture(scope="module")
def terminal(told):
    console = Console(width=400, record=True, file=StringIO())
    render_report.show(told.model_dump(mode="json"), console)
    return console.export_text()


def test_every_row_of_the_table_is_said_alike(told, terminal):
    page = plain(engine.report_page(told, None, ""))
    lines = [" ".join(line.split()) for line in terminal.splitlines()]
    for name, *cells in measures(told):
        if name == "operators":
            continue
        row = f"│ {name} │ {' │ '.join(cells)} │"
        assert " ".join(row.split()) in lines
    for cells in {row[1:] for figure in engine.figures(told) if figure.name == "before-after" for row in figure.rows}:
        assert all(cell in page and cell in terminal for cell in cells)


def test_large_counts_have_separators_everywhere(told, terminal):
    markdown = engine.report_files(told)["report.md"].decode()
    assert "judged on 1,000 others" in markdown
    assert "judged on 1,000 samples" in " ".join(terminal.split())
    assert "1,000 parameters" in markdown
    assert any("1,000" in row for figure in engine.figures(told) if figure.name == "quality" for row in figure.rows)


def test_a_search_tells_its_speeds_alike(told, terminal):
    markdown = plain(engine.report_files(told)["report.md"].decode())
    (point,) = told.search.front
    told_speed = of_service.speed_between(
        point.measured.latency_ratio, point.measured.latency_low, point.measured.latency_high
    )
    hovers = [trace["text"] for each in engine.figures(told) if each.name == "front" for trace in each.data]
    assert told_speed == "2.00x as fast (1.96 to 2.04)"
    assert told_speed in markdown
    assert told_speed in terminal
    assert any(told_speed in text for texts in hovers for text in texts)


def test_gates_and_steps_have_one_name_each(told, terminal):
    files = engine.report_files(told)
    written = [plain(files["report.md"].decode()), files["report.junit.xml"].decode()]
    written.append(plain(engine.report_page(told, None, "")))
    for result in told.verdict.gates:
        name = of_service.gate_text(result.gate)
        assert name == of_client.gate_text(result.gate.model_dump(mode="json"))
        assert name in terminal
        assert all(name in text for text in written)
    markdown = written[0]
    timeline = next(figure for figure in engine.figures(told) if figure.name == "timeline")
    assert [row[0] for row in timeline.rows] == [f"{step.number}: {step.type}" for step in told.steps]
    assert all(row[0] in markdown for row in timeline.rows)
