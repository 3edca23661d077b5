"""One moment that everything under it shares, however many requests that takes."""

import time
from dataclasses import dataclass
from typing import Self

from onnxpress.errors import WaitTimeoutError


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock, or never."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """Give the deadline that is so many seconds away; None is never."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    def left(self, at_most: float) -> float:
        """Give the seconds that may still be spent; raises WaitTimeoutError when there are none."""
        if self.at is None:
            return at_most
        left = self.at - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError("the deadline has passed")
        return min(at_most, left)

    def remaining(self) -> float | None:
        """Give all the seconds that are left, None for ever; raises WaitTimeoutError when there are none."""
        return None if self.at is None else self.left(float("inf"))


NEVER = Deadline()
