"""How far two networks' outputs are apart over some feeds: each output by itself, beside its own size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from engine.errors import VerificationFailedError
from engine.graph import row_sets
from engine.runtime import loading

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

# What identical outputs give instead of infinity.
_MOST_DB = 200.0
# Rounding may move a row across a threshold inside the network: so large a share of the rows, and one, may lack a partner.
_LOST_ROWS = 0.1
# Below this rows are compared one by one although the data decide their order.
_SAME = 1e-4
# What an output differs by in the original itself, from one optimisation level to another, is no fault of a change.
OWN_SLACK = 4.0


class Runnable(Protocol):
    """What gives outputs for a feed."""

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        ...


_Network = TypeVar("_Network", bound=Runnable)


@dataclass(frozen=True)
class OutputAgreement:
    """Of one output. `relative`: the largest difference as a share of its largest value; of integers, the share that differs.

    `scale`: its largest value. `own`: what the original itself differs by, and `floor` what means nothing at this size, where
    that was looked at.
    """

    relative: float
    sqnr_db: float
    is_float: bool = True
    scale: float = 1.0
    own: float = 0.0
    floor: float = 0.0

    @property
    def moved(self) -> float:
        """Give the difference, 0 where the original itself differs about as much, or where it means nothing."""
        return self.relative if self.relative > max(OWN_SLACK * self.own, self.floor) else 0.0


@dataclass(frozen=True)
class Agreement:
    """How far two networks' outputs are apart over some feeds."""

    outputs: Mapping[str, OutputAgreement] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """Name the output that moved most."""
        return max(self.outputs, key=lambda name: self.outputs[name].moved, default="")

    @property
    def relative(self) -> float:
        """Give by how much the output moved most that did, as a share of its largest value."""
        return max((each.moved for each in self.outputs.values()), default=0.0)

    @property
    def noisiest(self) -> str:
        """Name the output of floats with the least signal to noise."""
        floats = {name: each.sqnr_db for name, each in self.outputs.items() if each.is_float}
        return min(floats, key=lambda name: floats[name], default="")

    @property
    def sqnr_db(self) -> float:
        """Give the signal-to-noise ratio of the output of floats where it is least."""
        return self.outputs[self.noisiest].sqnr_db if self.noisiest else _MOST_DB

    def allowed(self, tolerance: float) -> float:
        """Give by how much the worst output may move where so much is allowed in any case."""
        worst = self.outputs[self.worst]
        return max(tolerance, OWN_SLACK * worst.own, worst.floor)

    def beside(self, own: "Agreement") -> "Agreement":
        """Give the same, with what the original itself differs by; of several such differences the largest counts."""
        return Agreement(
            {
                name: replace(each, own=max(each.own, own.outputs[name].relative)) if name in own.outputs else each
                for name, each in self.outputs.items()
            }
        )

    def above(self, floor: Callable[[str, float], float]) -> "Agreement":
        """Give the same, with the difference that means nothing: a share of an output's largest value, by both."""
        return Agreement(
            {
                name: replace(each, floor=floor(name, each.scale)) if each.is_float and each.scale else each
                for name, each in self.outputs.items()
            }
        )


class Remembered(Generic[_Network]):
    """A network that runs each feed once and then knows what it said, whether it is still loaded or not.

    For as many feeds as fit into memory with their outputs.
    """

    def __init__(self, load: Callable[[], _Network]) -> None:
        self._load = load
        self._loaded: _Network | None = None
        # The feeds are kept so that no other can have their identity.
        self._said: dict[int, tuple[Feed, dict[str, Any]]] = {}

    @property
    def network(self) -> _Network:
        """Give the network, loaded anew where it was let go of."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        if id(feed) not in self._said:
            found = self.network.run(feed)
            self._said[id(feed)] = feed, {name: loading.owned(value) for name, value in found.items()}
        return self._said[id(feed)][1]

    def hear(self, feeds: Iterable[Feed]) -> None:
        """Run some feeds, and let go of the network."""
        for feed in feeds:
            self.run(feed)
        self._loaded = None


def agreement(
    reference: Runnable,
    candidate: Runnable,
    feeds: Sequence[Feed],
    rows_may_swap: Callable[[], Mapping[str, bool]] | None = None,
) -> Agreement:
    """Compare two networks on the same feeds; raises VerificationFailedError where shapes or types differ.

    `rows_may_swap`: asked where outputs differ, for those whose rows the data count or order; these are compared as sets.
    """
    tallies: dict[str, _Tally] = {}
    for feed in feeds:
        expected, got = reference.run(feed), candidate.run(feed)
        for name, left in expected.items():
            if isinstance(left, np.ndarray) and isinstance(got[name], np.ndarray):
                tallies.setdefault(name, _Tally(name, rows_may_swap)).add(left, got[name])
    return Agreement({name: tally.result() for name, tally in tallies.items()})


class _Tally:
    """Adds up one output over the feeds."""

    def __init__(self, name: str, rows_may_swap: Callable[[], Mapping[str, bool]] | None) -> None:
        self._name, self._rows_may_swap = name, rows_may_swap
        self._scale = self._largest = self._signal = self._noise = 0.0
        self._count = self._differing = 0
        self._is_float = True
        self._distances: list[npt.NDArray[np.float64]] = []

    def add(self, left: Array, right: Array) -> None:
        self._is_float = family(left.dtype) == "float"
        swaps = self._swaps(left, right)
        if family(left.dtype) != family(right.dtype) or (left.shape != right.shape and not swaps):
            raise VerificationFailedError(
                f"Output `{self._name}` is {right.dtype}{list(right.shape)}, but was {left.dtype}{list(left.shape)}."
            )
        if not self._is_float and not swaps:
            self._count += left.size
            self._differing += int((left != right).sum())
            return
        if self._is_float:
            self._refuse_unlike(left, right, same_places=not swaps)
        wide = np.nan_to_num(left.astype(np.float64), posinf=0, neginf=0)
        self._scale = max(self._scale, float(np.abs(wide).max(initial=0.0)))
        self._count += left.size
        self._signal += float(np.square(wide).sum())
        if swaps:
            there, back = row_sets.distances(*row_sets.paired_rows(left, right, self._name))
            self._distances += [there, back]
            return
        difference = np.abs(wide - np.nan_to_num(right.astype(np.float64), posinf=0, neginf=0))
        self._largest = max(self._largest, float(difference.max(initial=0.0)))
        self._noise += float(np.square(difference).sum())

    def _swaps(self, left: Array, right: Array) -> bool:
        """Say whether to compare rows as sets: they differ, and the data decide how many there are or in which order."""
        if self._rows_may_swap is None or left.dtype.kind in "OUS":
            return False
        if left.shape == right.shape:
            one, other = (np.nan_to_num(each.astype(np.float64)) for each in (left, right))
            if not np.abs(one - other).max(initial=0.0) > _SAME * np.abs(one).max(initial=0.0):
                return False
        return bool(self._rows_may_swap().get(self._name))

    def _refuse_unlike(self, left: Array, right: Array, *, same_places: bool) -> None:
        wide, other = left.astype(np.float64), right.astype(np.float64)
        if np.isnan(other).any() and not np.isnan(wide).any():
            raise VerificationFailedError(f"Output `{self._name}` holds NaN, the original's does not.")
        if same_places and not np.array_equal(np.isinf(wide), np.isinf(other)):
            raise VerificationFailedError(
                f"Output `{self._name}` is infinite where the original's is not, or the reverse."
            )

    def result(self) -> OutputAgreement:
        if not self._is_float and not self._distances:
            share = self._differing / self._count if self._count else 0.0
            return OutputAgreement(share, _decibel(self._count, self._differing), is_float=False)
        scale, signal = self._scale or 1.0, self._signal or float(self._count)
        lengths = np.sort(np.concatenate(self._distances)) if self._distances else np.zeros(0)
        partnered = lengths[: len(lengths) - int(np.ceil(_LOST_ROWS * len(lengths)))]
        largest = max(self._largest, float(partnered.max(initial=0.0)))
        noise = self._noise + float(np.square(partnered).sum())
        return OutputAgreement(largest / scale, _decibel(signal, noise), is_float=self._is_float, scale=scale)


def _decibel(signal: float, noise: float) -> float:
    return _MOST_DB if noise == 0 else min(10 * float(np.log10(max(signal, 1e-300) / noise)), _MOST_DB)


def family(dtype: np.dtype[Any] | None) -> str:
    """Name a type so that floats of all widths are alike: a network that computes in 16 bits may take and give them."""
    return "float" if dtype is not None and dtype.name in loading.FLOATS else str(dtype)
