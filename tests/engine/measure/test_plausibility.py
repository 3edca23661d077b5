"""What speaks against a baseline: each mistake is named, and what is right is left in peace."""

import re

import numpy as np
import pytest

from engine.measure import metrics
from engine.measure.plausibility import doubts, look_at_baseline, right_share

DRAW = np.random.default_rng(11)
LABEL = DRAW.integers(0, 10, 120)
# Right on about 80 %.
SCORES = DRAW.normal(size=(120, 10)).astype(np.float32) + 3 * np.eye(10, dtype=np.float32)[LABEL]


def said(output, label, metric, batch=32):
    first = output[:batch], None if label is None else label[:batch]
    how = metrics.read_output(*first)
    runs = [
        (output[at : at + batch], None if label is None else label[at : at + batch])
        for at in range(0, len(output), batch)
    ]
    return [doubt.said for doubt in doubts(look_at_baseline(runs, metric, how))]


@pytest.mark.parametrize(
    ("output", "label", "metric"),
    [
        (SCORES, LABEL, "top1"),
        (SCORES, LABEL, "top5"),
        (SCORES, LABEL, "f1"),
        (SCORES[:3], LABEL[:3], "top1"),
        (SCORES, None, None),
        (SCORES[:, :1] - 100, None, None),
        (SCORES, SCORES + DRAW.normal(size=SCORES.shape), "mse"),
        # A yes or no that is rare, and found half of the time.
        (
            np.where(np.arange(200) % 20 == 0, 2.0, -1.0).astype(np.float32),
            (np.arange(200) % 10 == 0).astype(np.int64),
            "f1",
        ),
    ],
)
def test_what_is_right_is_left_in_peace(output, label, metric):
    assert said(output, label, metric) == []


@pytest.mark.parametrize(
    ("output", "label", "metric", "words"),
    [
        (SCORES, DRAW.permutation(LABEL), "top1", "cannot be told from chance"),
        (SCORES, np.full(120, 4), "top1", "All 120 labels that were looked at are class 4"),
        (SCORES, LABEL - 1, "top1", "would be on .* if you add 1 to each"),
        (SCORES, LABEL + 1, "top1", "would be on .* if you subtract 1 from each"),
        (SCORES, DRAW.permutation(10)[LABEL], "top1", "number the classes in another order"),
        (SCORES[:, :2], 1 - SCORES[:, :2].argmax(1), "top1", "two classes seem to be swapped"),
        (SCORES * [9, *[0] * 9] + [50, *[0] * 9], LABEL, "top1", "decides for class 0 on all 120 samples"),
        (SCORES * [9, *[0] * 9] + [50, *[0] * 9], None, None, "decides for class 0 on all 120 samples"),
        (np.tile(SCORES[:1], (120, 1)), LABEL, "top1", "gives the same for all 120 samples"),
        (np.tile(SCORES[:1], (120, 1)), None, None, "gives the same for all 120 samples"),
        (SCORES, DRAW.permutation(SCORES), "mse", "no smaller than that of always giving the mean"),
        (SCORES, 100 * SCORES + 7, "mse", r"on another scale.*label = 100 x output \+ 7"),
        (SCORES, np.full_like(SCORES, 2), "mae", "120 labels that were looked at are equal"),
    ],
)  # fmt: skip
def test_mistakes_are_named(output, label, metric, words):
    found = said(np.asarray(output, np.float32), label, metric)
    assert len(found) == 1, found
    assert re.search(words, found[0]), found


def test_values_that_nobody_labelled_decide_nothing():
    values = SCORES * [9, *[0] * 9] + [50, *[0] * 9]
    seen = look_at_baseline(
        [(values.astype(np.float32), None)], None, metrics.read_output(values, None), classifies=False
    )
    assert list(doubts(seen)) == []


def test_tokens_that_are_not_the_next_ones():
    ids = DRAW.integers(0, 30, (40, 12))
    following = np.concatenate([ids[:, 1:], np.full((40, 1), -1)], axis=1)
    logits = DRAW.normal(size=(40, 12, 30)).astype(np.float32)
    logits[:, :-1] += 6 * np.eye(30, dtype=np.float32)[ids[:, 1:]]
    assert said(logits, following, "perplexity") == []
    (found,) = said(logits, ids, "perplexity")
    assert "the token at the position itself, not the next one" in found
    found = said(logits, DRAW.integers(0, 30, (40, 12)), "perplexity")
    assert any("that of a guess among all 30 tokens" in text for text in found) or any(
        "chance" in text for text in found
    )


def test_sequences_of_another_alphabet():
    text = DRAW.integers(1, 20, (30, 4))
    steps = np.repeat(text, 2, axis=1)
    steps[:, 1::2] = 0
    scores = np.eye(22, dtype=np.float32)[steps] * 5
    assert said(scores, text, "edit_distance") == []
    assert "shifted by one" in said(scores, text - 1, "edit_distance")[0]
    assert "reads almost nothing" in said(scores, np.full((30, 4), 21), "edit_distance")[0]


def test_the_share_that_is_right():
    seen = look_at_baseline([(SCORES, LABEL)], "top1", metrics.read_output(SCORES, LABEL))
    assert right_share(seen) == pytest.approx((SCORES.argmax(1) == LABEL).mean())
