"""Numbers with units as people type them."""

import pytest

from onnxpress import quantities
from onnxpress.errors import UsageError


@pytest.mark.parametrize(("text", "limit"), [("5ms", 5.0), ("0.005s", 5.0), ("5", 5.0), ("2.5ms", 2.5), ("40us", 0.04)])
def test_a_latency_has_its_unit(text, limit):
    assert quantities.parse_milliseconds(text, "x") == pytest.approx(limit)
    with pytest.raises(UsageError, match="not a number"):
        quantities.parse_milliseconds("5 minutes", "x")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("100KB", 100_000),
        ("2MB", 2_000_000),
        ("2MiB", 2 << 20),
        ("1.5 mb", 1_500_000),
        ("4096", 4096),
        ("1gib", 1 << 30),
    ],
)
def test_bytes_are_powers_of_ten_or_with_an_i_of_two(text, count):
    assert quantities.parse_bytes(text, "x") == count


@pytest.mark.parametrize(
    ("text", "words"), [("2MX", "no unit of bytes"), ("small", "not a size"), ("-2MB", "not a size")]
)
def test_what_is_no_size_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        quantities.parse_bytes(text, "--max-size")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("10min", 600), ("1h30m", 5400), ("500ms", 0.5), ("2 h", 7200)]
)
def test_times_are_in_their_units(text, seconds):
    assert quantities.parse_seconds(text, "x") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"), [("10", "say the unit, such as 10s or 10m"), ("3x", "no unit of time"), ("soon", "not a time")]
)
def test_a_time_that_may_mean_two_things_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        quantities.parse_seconds(text, "--budget")


def test_a_deadline_is_in_seconds_or_in_its_unit():
    assert quantities.parse_patience("90") == 90
    assert quantities.parse_patience("30m") == 1800
    with pytest.raises(UsageError, match="too short"):
        quantities.parse_patience("0")


@pytest.mark.parametrize(("text", "loss"), [("1%", 0.01), ("0.01", 0.01), ("0.5%", 0.005), ("0.5", 0.5)])
def test_a_loss_is_a_share(text, loss):
    assert quantities.parse_loss(text, "--max-drop") == pytest.approx(loss)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1", r"a loss of 100 points, which nothing can exceed; 1 points are written 1%"),
        ("2.5", r"2.5 points are written 2.5%"),
        ("100%", r"nothing can exceed$"),
        ("0", "above 0"),
        ("-1%", "above 0"),
        ("nan", "above 0"),
    ],
)
def test_a_loss_that_binds_nothing_or_everything_is_refused_with_what_was_meant(text, words):
    with pytest.raises(UsageError, match=words):
        quantities.parse_loss(text, f"--max-drop {text}")


def test_a_factor_is_how_many_times_as_fast():
    assert quantities.parse_factor("3", "x") == quantities.parse_factor("3x", "x") == 3
    for wrong, words in (("30%", "such as 1.5"), ("0", "above 0"), ("fast", "not a number")):
        with pytest.raises(UsageError, match=words):
            quantities.parse_factor(wrong, "--min-speedup")
