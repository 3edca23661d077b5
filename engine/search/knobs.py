"""What samplers turn: whole numbers with a name."""

from dataclasses import dataclass

# One of each knob, in their order.
Values = tuple[int, ...]


@dataclass(frozen=True)
class Knob:
    """A whole number from 0 to `levels` - 1. 0 is the network as it is; in order where levels are."""

    name: str
    levels: int
    ordered: bool = True
