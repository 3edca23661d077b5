"""What a network's costs are added up from: terms that each depend on a few widths, with exact bytes and multiplications."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from engine.goal import Precision

# What a group keeps, by its name; groups that are not named keep all.
Widths = Mapping[str, int]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Size(_Value):
    """A size that follows from widths: some places that stay, and so many for each channel, head or neuron of a group."""

    fixed: int
    per_kept: dict[str, float] = Field(default_factory=dict)

    def at(self, widths: Widths, full: Widths) -> int:
        """Give the size at these widths; `full` has those of the given network."""
        return self.fixed + round(sum(each * widths.get(group, full[group]) for group, each in self.per_kept.items()))


class Tensor(_Value):
    """A stored tensor: bytes of an element and the sizes of its axes."""

    item: float
    axes: tuple[Size, ...]
    # The matrix or kernel of a layer: what other precisions store in fewer bits.
    weight: bool = False

    def elements(self, widths: Widths, full: Widths) -> int:
        """Count its elements."""
        return math.prod(axis.at(widths, full) for axis in self.axes)


class Term(_Value):
    """A layer with the operators that follow it up to the next layer, or such operators alone.

    Layers of one signature are computed by the same kernels at the same places: only their widths tell them apart.
    """

    name: str
    # The layer in it, whose rank or precision may be its own.
    layer: str | None
    # Names of sums: without the residual branch of any of them the term is gone.
    blocks: tuple[str, ...] = ()
    signature: str
    # Channels that it reads and gives, and at how many places it gives them.
    reads: Size
    gives: Size
    rows: int = 1
    tensors: tuple[Tensor, ...] = ()
    # Multiply-accumulates of the given network, by which of its tensors they grow with (-1: with what it gives).
    macs: tuple[tuple[int, int], ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Name the groups whose widths it depends on."""
        sizes = [self.reads, self.gives, *(axis for tensor in self.tensors for axis in tensor.axes)]
        return tuple(dict.fromkeys(group for size in sizes for group in size.per_kept))

    def macs_at(self, widths: Widths, full: Widths) -> int:
        """Count its multiply-accumulates at these widths."""
        total = 0
        for count, tensor in self.macs:
            part = self.gives.at if tensor < 0 else self.tensors[tensor].elements
            total += count * part(widths, full) // max(1, part(full, full))
        return total


class Structure(_Value):
    """A network as terms, and what its file holds beside their tensors."""

    full: dict[str, int] = Field(description="By name of a group: all that it has.")
    terms: tuple[Term, ...]
    file_bytes: int
    macs: int
    parameters: int

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the file beside tensors: the graph itself."""
        return self.file_bytes - round(
            sum(tensor.item * tensor.elements({}, self.full) for term in self.terms for tensor in term.tensors)
        )


class Timed(_Value):
    """A composed network that was timed: its ratio to the original, and which share of the original's time each term took."""

    dropped: tuple[str, ...] = ()
    widths: dict[str, int] = Field(default_factory=dict)
    in_float: tuple[str, ...] = ()
    ratio: float
    # How far the original was from itself beside it.
    noise: float = 0.0
    size_bytes: int
    # Of a run, and of all its kernels by the profile, which costs something itself.
    ms: float = 0.0
    kernels_ms: float = 0.0
    terms: dict[str, float] = Field(default_factory=dict)

    def scaled(self, factor: float) -> "Timed":
        """Give it with all shares of time multiplied."""
        terms = {name: factor * share for name, share in self.terms.items()}
        return self.model_copy(update={"ratio": factor * self.ratio, "terms": terms})


class Times(_Value):
    """What was timed in one precision on the target."""

    precision: Precision
    networks: tuple[Timed, ...]
    # Layers whose weights are stored in that precision where nothing else is asked for.
    layers: tuple[str, ...] = ()
    # Why there are none.
    failed: str | None = None

    @property
    def whole(self) -> Timed | None:
        """Give the network that has all that the given one has, if it was timed."""
        return next((each for each in self.networks if not (each.widths or each.dropped or each.in_float)), None)
