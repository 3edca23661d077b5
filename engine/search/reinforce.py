"""A policy that learns which variants to choose from what choices were worth: REINFORCE, the textbooks' second strategy.

The controller has a distribution over the levels of every knob. A choice is drawn from it, tried, and rewarded; the logarithm of
its probability is then moved by how much better it was than what had been usual (a moving average as the baseline, Williams 1992),
and a bonus for entropy keeps it from settling too soon (Zoph and Le 2017, https://arxiv.org/abs/1611.01578; for compression He et
al. 2018, https://arxiv.org/abs/1802.03494). One reward has one optimum, and a front has many, so there are several heads: each
weighs the objectives in its own way, and all of them learn from every trial. The policy is not stored: it is rebuilt by replay.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.search.knobs import Knob, Values
from engine.search.samplers import Rate, Rated

Floats = npt.NDArray[np.float64]

# Of two objectives, the weight of the first; one for each head.
_PREFERENCES = (0.15, 0.35, 0.5, 0.65, 0.85)
_RATE = 0.35
_BASELINE = 0.9
_ENTROPY = 0.02
# Real trials are replayed so often: they are few, and worth more than predictions.
_REPLAYS = 2
# A reward of so much of the usual spread counts no more, or one failure would decide.
_CLIP = 2.0
# What an unevaluated network or one outside of limits is worth beside the worst inside.
_PENALTY = 1.0


class Controller:
    """The policies of all heads, and what they take for usual."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._logits: list[list[Floats]] = [[np.zeros(knob.levels) for knob in knobs] for _ in _PREFERENCES]
        self._usual: list[float | None] = [None] * len(_PREFERENCES)
        self._spread = [0.0] * len(_PREFERENCES)

    def draw(self, head: int) -> Values:
        """Draw a choice from the policy of a head."""
        return tuple(int(self._random.choice(len(logits), p=_softmax(logits))) for logits in self._logits[head])

    def learn(self, rated: Rated) -> None:
        """Move the policies of all heads by what a choice was worth to each."""
        for head, preference in enumerate(_PREFERENCES):
            reward = _reward(rated, preference)
            usual = self._usual[head]
            if usual is None:
                self._usual[head] = reward
                continue
            self._spread[head] = _BASELINE * self._spread[head] + (1 - _BASELINE) * abs(reward - usual)
            self._usual[head] = _BASELINE * usual + (1 - _BASELINE) * reward
            advantage = float(np.clip((reward - usual) / max(self._spread[head], 1e-9), -_CLIP, _CLIP))
            self._logits[head] = [
                logits + _RATE * (advantage * _score(logits, value) + _ENTROPY * _entropy_slope(logits))
                for logits, value in zip(self._logits[head], rated.values, strict=True)
            ]

    def entropy(self) -> float:
        """Give the mean entropy of a knob in nats: 0 once every head has made up its mind."""
        found = [
            -float(share @ np.log(np.maximum(share, 1e-300)))
            for head in self._logits
            for logits in head
            for share in [_softmax(logits)]
        ]
        return float(np.mean(found)) if found else 0.0


def ask(knobs: Sequence[Knob], told: Sequence[Rated], *, seed: int, count: int, rate: Rate | None) -> list[Values]:
    """Give the choices that the policy draws next, the heads in turn.

    Args:
        knobs: What there is to turn.
        told: Trials that have ended, in the order of their numbers; the policy learns from them.
        seed: With the same trials in the same order, the same seed gives the same answer.
        count: How many are drawn.
        rate: What is expected of a choice, which the policy learns from before real trials and from each draw; None: nothing is.

    """
    controller = Controller(knobs, seed)
    found: list[Values] = []
    if rate is not None:
        # What is expected comes first, so that what really happened has the last word.
        for place in range(count):
            values = controller.draw(place % len(_PREFERENCES))
            found.append(values)
            controller.learn(rate(values))
    for _ in range(_REPLAYS):
        for rated in told:
            controller.learn(rated)
    # Other draws for every number of trials, as the policy need not have changed.
    for _ in range(len(told)):
        controller.draw(0)
    drawn = [controller.draw((len(told) + place) % len(_PREFERENCES)) for place in range(count)]
    return drawn + found[::-1]


def _reward(rated: Rated, preference: float) -> float:
    """Give what a choice is worth: minus its weighted Chebyshev distance from the ideal, and less where limits are broken."""
    if rated.objectives is None:
        return -1.0 - _PENALTY
    weights = np.array([preference, 1 - preference])
    weighted = weights * np.array(rated.objectives)
    broken = sum(max(0.0, each) for each in rated.violations)
    return -float(weighted.max() + 0.1 * weighted.sum()) - _PENALTY * min(1.0, broken)


def _score(logits: Floats, value: int) -> Floats:
    """Give the gradient of the logarithm of the probability of a value."""
    found = -_softmax(logits)
    found[value] += 1.0
    return found


def _entropy_slope(logits: Floats) -> Floats:
    share = _softmax(logits)
    logs = np.log(np.maximum(share, 1e-300))
    return np.asarray(-share * (logs - float(share @ logs)))


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())
