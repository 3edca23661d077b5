"""What the details of all passes are made of."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Detail(BaseModel):
    """A value in a report: frozen, and nothing unknown goes in."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class LeftAlone(Detail):
    """A node that a pass leaves as it is."""

    node: str
    reason: str


def left_alone(reasons: Mapping[str, str]) -> tuple[LeftAlone, ...]:
    """Give reasons by node as a report lists them."""
    return tuple(LeftAlone(node=node, reason=reason) for node, reason in reasons.items())


class CountChange(Detail):
    """How many there were, and are."""

    before: int = Field(ge=0)
    after: int = Field(ge=0)
