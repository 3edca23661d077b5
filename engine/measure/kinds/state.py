"""A recurrent state or a cache of keys and values: only what later steps make of it counts, so it has to be near."""

from collections.abc import Callable, Iterable, Iterator

from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject, decibel
from engine.measure.kinds.vectors import Vectors
from engine.measure.metrics import Array
from engine.report.values import Quality


class State(Comparison):
    """Compares states by their noise and their direction."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._vectors = Vectors()

    def add(self, original: Batch, compressed: Batch, valid: Array | None) -> None:
        """Compare a batch."""
        del valid
        self._vectors.add(original[self._name], compressed[self._name])

    def qualities(self) -> Iterator[Quality]:
        """Give sqnr_db and cosine."""
        yield from self._vectors.qualities()


def _read(subject: Subject, batches: Iterable[Batch]) -> Callable[[], Comparison]:
    del batches
    return lambda: State(subject.name)


STATE = Kind(
    metrics=("sqnr_db", "cosine"),
    floors=(
        Floor("sqnr_db", 10.0, "the signal-to-noise ratio of the state is {value}; at least {limit} is required",
              form=decibel),
    ),
    read=_read,
)  # fmt: skip
