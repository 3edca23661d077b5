"""What the passes say that only change a network's form."""

from typing import Literal

from pydantic import Field

from engine.report.detail_parts import CountChange, Detail


class DroppedStage(Detail):
    """A stage of `simplify` whose result was not taken."""

    stage: str
    reason: str


class SimplifyDetails(Detail):
    """What `simplify` did."""

    of: Literal["simplify"] = "simplify"
    nodes: CountChange
    ops: dict[str, CountChange] = Field(description="Nodes by operator, where their number changed.")
    stages: tuple[str, ...] = Field(description="Those that helped, in order.")
    dropped_stages: tuple[DroppedStage, ...]


class FuseDetails(Detail):
    """What `fuse` did."""

    of: Literal["fuse"] = "fuse"
    nodes: CountChange
    fused: dict[str, int] = Field(description="How often, by what was fused.")
