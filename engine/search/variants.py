"""What one change of a network costs, as it is stored."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["width", "block", "rank", "precision"]


class Variant(BaseModel):
    """The network with one change, refitted in closed form: what it lost on the samples to choose by, and what it takes.

    `damage` is the divergence from the original (KL in nats where outputs are classes, else the share of noise in them) plus
    what the task's metric surely lost, by the lower end of its interval. Small damages of independent changes add up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: Kind
    # A group, a sum, a layer, or a precision.
    subject: str
    # What a group keeps or the rank of a layer.
    value: int | None = None
    # None: there is no such network, and `failed` says why.
    damage: float | None
    size_bytes: int = 0
    macs: int = 0
    parameters: int = 0
    failed: str | None = None

    @property
    def harm(self) -> float:
        """Its damage; infinite where there is no such network."""
        return math.inf if self.damage is None else self.damage
