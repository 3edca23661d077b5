"""How the learning rate goes up and down over a budget of seconds and steps, and when the budget is spent."""

import math
from dataclasses import dataclass, field
from typing import Literal

_WARMUP = 0.05
_LEAST_WARMUP, _MOST_WARMUP = 10, 500
# Of the highest rate, at the end.
_FLOOR = 0.01
# What is taken for the number of steps until it is known how long one takes.
_UNKNOWN = 1000


def rate(step: int, total: int) -> float:
    """Give the share of the highest learning rate in a step, counted from 0: a linear warm-up, then half a cosine.

    Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983), without restarts.
    """
    warmup = min(max(round(_WARMUP * total), _LEAST_WARMUP), _MOST_WARMUP, max(total // 4, 1))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass
class Pace:
    """How far a training is along. Only the time of training itself counts, not that of waiting and judging.

    With `steps` the same number is done on every machine that is fast enough for it, so the result follows from the seed; else
    as many as there is time for.
    """

    seconds: float
    steps: int | None = None
    spent: float = 0.0
    step: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.steps or _UNKNOWN
        self.replan()

    def replan(self) -> None:
        """See how many steps there will be, by how long those so far took."""
        if self.step and self.spent > 0:
            left = max(self.seconds - self.spent, 0.0)
            affordable = self.step + math.floor(left * self.step / self.spent)
            self.total = affordable if self.steps is None else min(self.steps, affordable)

    def shorten(self, seconds: float) -> None:
        """Have no more than so many seconds left."""
        self.seconds = min(self.seconds, self.spent + max(seconds, 0.0))

    @property
    def rate(self) -> float:
        """Give the share of the highest learning rate in the step that comes."""
        return rate(self.step, self.total)

    @property
    def share(self) -> float:
        """Give how much is done, 0 to 1."""
        return min(1.0, max(self.step / max(self.total, 1), 0.0))

    @property
    def over(self) -> Literal["seconds", "steps"] | None:
        """Say which budget is spent; None: neither is."""
        if self.steps is not None and self.step >= self.steps:
            return "steps"
        if self.spent >= self.seconds or (self.step >= self.total > 0 and self.step > 0 and self.spent > 0):
            return "seconds"
        return None
