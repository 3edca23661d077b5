"""What a kind of output is: how its numbers are read, how two networks' are compared, and how far apart is too far."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from engine.measure.metrics import Array
from engine.report.values import Quality

# Outputs of some samples by name, samples on the first axis.
Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Floor:
    """A limit on a metric that is held where no gate says otherwise.

    `said` is the sentence behind the output's name; `{value}` and `{limit}` stand for the numbers.
    """

    metric: str
    limit: float
    said: str
    at_least: bool = True
    form: Callable[[float], str] = "{:.3g}".format

    def allows(self, value: float) -> bool:
        """Say whether a value is inside."""
        return value >= self.limit if self.at_least else value <= self.limit

    def broken_by(self, quality: Quality) -> str | None:
        """Give what is wrong in words, None where the metric is inside."""
        if self.allows(quality.compressed):
            return None
        return self.said.format(value=self.form(quality.compressed), limit=self.form(self.limit))


class Comparison(ABC):
    """Collects what two networks' outputs have in common; a few numbers per sample stay."""

    @abstractmethod
    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch: no NaN, infinities in the same places, equal shapes unless the data decide the rows.

        `valid`: which positions (samples, positions) of the inputs are no padding; None where that is unknown.
        """

    @abstractmethod
    def qualities(self) -> Iterator[Quality]:
        """Give the kind's metrics over all samples."""


@dataclass(frozen=True)
class Subject:
    """The output that is judged, and what was found out about it.

    `rows_vary`: the data decide how many rows it has. `companions`: other outputs by role that belong to its rows.
    """

    name: str
    rows_vary: bool = False
    companions: Mapping[str, str] | None = None
    label: Array | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of output.

    `read` looks at the original's outputs, which may be iterated over several times, and gives the way to compare.
    """

    metrics: tuple[str, ...]
    floors: tuple[Floor, ...]
    read: Callable[[Subject, Iterable[Batch]], Callable[[], Comparison]]


def percent(value: float) -> str:
    """Write a share."""
    return f"{value:.1%}"


def decibel(value: float) -> str:
    """Write a ratio of energies."""
    return f"{value:.1f} dB"


# Where the numbers themselves count: noise of 15 dB is 18 % of their size.
SQNR_FLOOR = Floor("sqnr_db", 15.0, "the signal-to-noise ratio is {value}; at least {limit} is required", form=decibel)
