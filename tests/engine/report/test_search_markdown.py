"""A search's report for people: who reads it can follow what was tried, and sees what there is to choose from."""

import pytest

from engine.report.search_markdown import search_lines

from ...search_reports import search_report


def _row(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_story_says_what_was_tried_and_why_it_was_kept_or_dropped():
    text = "\n".join(search_lines(search_report()))
    assert (
        "The least latency, within top1 max_drop 1 point, size_bytes max 200 kB. It could take 600 s and 60 candidates."
        in text
    )
    assert (
        "2 candidates were measured, 1 failed, in 321 s. The budget of 600 s is spent. Trial 3 made the result." in text
    )
    assert _row(text, "| 1 |") == (
        r"| 1 | 1 | half of the channels \| refitted | solver: uniform |  | 2.50x as fast (2.44 to 2.56), 150.0 kB,"
        r" top1 -3.10 points | not shown | dropped: top1 falls by 3.1 points, 1 is allowed |"
    )
    assert _row(text, "| 2 |") == "| 2 | 1 | 2 blocks dropped | solver |  | failed |  | dropped: the process ended |"
    assert "2.08x as fast, 181.0 kB | 2.00x as fast (1.96 to 2.04)" in _row(text, "| **3** |")


def test_the_front_has_predicted_beside_measured_and_the_recipes():
    text = "\n".join(search_lines(search_report()))
    assert _row(text, "| 3 | INT8") == (
        "| 3 | INT8, 3 groups narrower | 2.00x as fast (1.96 to 2.04) | 180.0 kB | top1 -0.40 points | 2.08x as fast, 181.0 kB |"
        " yes | chosen |"
    )
    assert "* 3: `simplify`, `prune_channels`, `quantize_static`" in text
    assert "half of the predictions are off by no more than 4.0 %" in text
    assert "| 3 | 0.480 | 0.500 | 4.0 % |" in text


def test_a_goal_that_is_not_met_shows_what_comes_nearest_and_what_limits_it():
    text = "\n".join(search_lines(search_report(met=False)))
    assert "The result is not shown to hold every limit on the samples that judge" in text
    assert "No candidate is shown to hold every limit on the samples to choose by." in text
    assert "size at most 200 kB: 240 kB, off by 20 %" in text
    assert "| size at most 200 kB | 1 | 150 kB (trial 1) | narrower layers lose more than 1 point |" in text


@pytest.mark.parametrize("kept", [1, 150])
def test_of_a_long_search_everything_that_was_kept_is_shown(kept):
    report = search_report()
    dropped, *_, last = report.story
    lines = [(last if number <= kept else dropped).model_copy(update={"trial": number}) for number in range(1, 301)]
    text = "\n".join(search_lines(report.model_copy(update={"story": tuple(lines), "chosen": None, "front": ()})))
    shown = [line for line in text.splitlines() if "kept: " in line or "dropped: " in line]
    assert sum("kept: " in line for line in shown) == kept
    assert max(78, kept + 2) <= len(shown) <= max(80, kept + 2), "the first and the last of what was dropped"
    assert f"And {300 - len(shown)} more that were dropped" in text
