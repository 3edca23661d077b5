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
_RATE = 0.1
_BASELINE = 0.9
_ENTROPY = 0.02
# So often are real trials learnt from: more, and the first ones decide everything.
_REPLAYS = 1
# A reward of so much of the usual spread counts no more, or one failure would decide.
_CLIP = 2.0
# What an unevaluated network or one outside of limits is worth beside the worst inside.
_PENALTY = 1.0


class Controller:
    """The policies of all heads, and what they take for usual."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        self._random = np.random.default_rng(seed)
        levels = np.array([knob.levels for knob in knobs], np.int64)
        there = np.arange(levels.max(initial=1))[None] < levels[:, None]
        # Of shape (heads, knobs, levels); levels that a knob has not are never drawn.
        self._logits: Floats = np.where(there, np.zeros((len(_PREFERENCES), 1, 1)), -np.inf)
        self._usual: Floats | None = None
        self._spread: Floats = np.zeros(len(_PREFERENCES))

    def draw(self, head: int) -> Values:
        """Draw a choice from the policy of a head."""
        above = _softmax(self._logits[head]).cumsum(-1)
        lots = self._random.random((len(above), 1)) * above[:, -1:]
        return tuple((above <= lots).sum(-1).tolist())

    def learn(self, rated: Rated) -> None:
        """Move the policies of all heads by what a choice was worth to each."""
        rewards = np.array([_reward(rated, preference) for preference in _PREFERENCES])
        if self._usual is None:
            self._usual = rewards
            return
        better = rewards - self._usual
        self._spread = _BASELINE * self._spread + (1 - _BASELINE) * np.abs(better)
        self._usual = _BASELINE * self._usual + (1 - _BASELINE) * rewards
        advantage = np.clip(better / np.maximum(self._spread, 1e-9), -_CLIP, _CLIP)
        share = _softmax(self._logits)
        # The gradient of the logarithm of the probability of the choice, and that of the entropy.
        score = -share
        score[:, np.arange(len(rated.values)), list(rated.values)] += 1.0
        logs = np.log(np.maximum(share, 1e-300))
        entropy = -share * (logs - (share * logs).sum(-1, keepdims=True))
        self._logits = self._logits + _RATE * (advantage[:, None, None] * score + _ENTROPY * entropy)

    def entropy(self) -> float:
        """Give the mean entropy of a knob in nats: 0 once every head has made up its mind."""
        share = _softmax(self._logits)
        return float(-(share * np.log(np.maximum(share, 1e-300))).sum(-1).mean())


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


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))
