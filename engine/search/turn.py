"""What a search asks for at a turn: parts of its library, trials of candidates, or its end. See `engine.search.cascade`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engine.search.values import Proposal


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class MeasureVariants(_Value):
    """Measure these parts of the variant library; the search goes on when all are there."""

    do: Literal["measure_variants"] = "measure_variants"
    parts: tuple[str, ...]


class TryProposals(_Value):
    """Try these candidates, in this order; trials that are not needed any more are dropped."""

    do: Literal["try_proposals"] = "try_proposals"
    proposals: tuple[Proposal, ...]
    # Numbers of trials whose networks nothing will go on from.
    drop: tuple[int, ...] = ()


class Finish(_Value):
    """End with the network of this trial; None: the original is the best there is."""

    do: Literal["finish"] = "finish"
    trial: int | None
    because: str = Field(description="Why the search ends now.")


Turn = MeasureVariants | TryProposals | Finish
_TURN: TypeAdapter[Turn] = TypeAdapter(Annotated[Turn, Field(discriminator="do")], config=ConfigDict(defer_build=True))


def read_turn(body: object) -> Turn:
    """Give the turn that a JSON value describes; raises pydantic's ValidationError."""
    return _TURN.validate_python(body)
