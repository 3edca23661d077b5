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


def counted(number: int, what: str) -> str:
    """Give how many there are of something, in words."""
    return f"{number} {what}{'s' * (number != 1)}"


def stay(number: int, what: str = "layer") -> str:
    """Say how many stay in float, as the end of a summary; nothing where none does."""
    return f"; {counted(number, what)} stay{'s' * (number == 1)} in float" if number else ""


class CountChange(Detail):
    """How many there were, and are."""

    before: int = Field(ge=0)
    after: int = Field(ge=0)
