"""What our networks have to reach, and how far they came."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.contest import OURS, Result
from benchmarks.tables import speed

_HUNDREDTHS = frozenset({"points", "%"})
Measured = Callable[[Result, Sequence[Result]], float | None]
INTEGERS_ONLY = "INT8 only"
"""Settings of ours that quantize and do nothing else begin like that."""


@dataclass(frozen=True)
class Bar:
    """One figure of one of our networks: what it must reach, and what is aimed at.

    `setting` names the recipe. `unit` is for figures as they are shown; `most`: the figure must not be larger, else not smaller.
    """

    setting: str
    words: str
    measured: Measured
    must: float
    aim: float | None = None
    unit: str = "x"
    most: bool = False

    def met(self, figure: float) -> bool:
        """Say whether a figure reaches what it must."""
        return _reaches(figure, self.must, most=self.most)

    def shown(self, figure: float) -> str:
        """Give a figure with its unit."""
        if self.unit == "x":
            return f"{figure:.2f}x"
        return f"{100 * figure:.2f} {self.unit}" if self.unit in _HUNDREDTHS else f"{figure:g} {self.unit}"


@dataclass(frozen=True)
class Held:
    """A bar beside what was measured; `figure` is None where nothing was."""

    bar: Bar
    figure: float | None

    @property
    def met(self) -> bool:
        """True: it was measured, and reaches what it must."""
        return self.figure is not None and self.bar.met(self.figure)

    @property
    def line(self) -> str:
        """Say it in a sentence."""
        bar = self.bar
        wanted = f"{'at most' if bar.most else 'at least'} {bar.shown(bar.must)}"
        if bar.aim is not None:
            wanted += f", aim {bar.shown(bar.aim)}"
        if self.figure is None:
            return f"**missed**: {bar.setting}, {bar.words}: not measured ({wanted})"
        mark = "met" if self.met else "**missed**"
        if self.met and bar.aim is not None and _reaches(self.figure, bar.aim, most=bar.most):
            mark = "met, and the aim"
        return f"{mark}: {bar.setting}, {bar.words}: {bar.shown(self.figure)} ({wanted})"


def hold(bars: Sequence[Bar], results: Sequence[Result]) -> Iterator[Held]:
    """Give every bar with its figure; the original is the first result."""
    ours = {each.setting: each for each in results[1:] if each.maker == OURS and each.path is not None}
    for bar in bars:
        result = ours.get(bar.setting)
        yield Held(bar, None if result is None else bar.measured(result, results))


def needs(bars: Sequence[Bar], setting: str) -> bool:
    """Say whether bars cannot be held without the network of this setting."""
    compared = any(bar.measured in _BESIDE_INTEGERS for bar in bars)
    return any(bar.setting == setting for bar in bars) or (compared and setting.startswith(INTEGERS_ONLY))


def loss(result: Result, _results: Sequence[Result]) -> float | None:
    """Give how much of the score is lost, 0.01 is a point."""
    return None if result.score is None else -float(result.score["change"])


def value(result: Result, _results: Sequence[Result]) -> float | None:
    """Give the score itself."""
    return None if result.score is None else float(result.score["value"])


def of_original(result: Result, results: Sequence[Result]) -> float | None:
    """Give the score as a share of the original's."""
    original = results[0].score
    return None if result.score is None or original is None else result.score["value"] / original["value"]


def smaller(result: Result, results: Sequence[Result]) -> float | None:
    """Give how many times as large the original is."""
    return results[0].bytes / result.bytes if result.bytes and results[0].bytes else None


def faster(result: Result, _results: Sequence[Result]) -> float | None:
    """Give how many times as fast as the original it runs."""
    return speed(result)


def faster_than_integers(result: Result, results: Sequence[Result]) -> float | None:
    """Give how many times as fast it runs as the fastest network of anybody that is quantized and nothing else."""
    return _beside_fastest(result, filter(only_integers, results[1:]))


def faster_than_peers(result: Result, results: Sequence[Result]) -> float | None:
    """Give how many times as fast as the fastest network of any peer it runs, whatever that loses."""
    return _beside_fastest(result, (each for each in results[1:] if each.maker != OURS))


def faster_than_single_passes(result: Result, results: Sequence[Result]) -> float | None:
    """Give how many times as fast as the fastest of ours that is quantized and nothing else, of those that lose no more."""
    allowed = max(loss(result, results) or 0.0, 0.0)
    others = [each for each in results[1:] if each.maker == OURS and only_integers(each)]
    return _beside_fastest(result, (each for each in others if (loss(each, results) or 0.0) <= allowed))


def _beside_fastest(result: Result, others: Iterable[Result]) -> float | None:
    speeds = [speed(each) for each in others if each.score is not None]
    fastest = max((each for each in speeds if each is not None), default=None)
    own = speed(result)
    return None if own is None or fastest is None else own / fastest


def only_integers(result: Result) -> bool:
    """Say whether a network of the contest is quantized and nothing else."""
    return result.path is not None and result.setting.startswith(INTEGERS_ONLY)


def _reaches(figure: float, limit: float, *, most: bool) -> bool:
    return figure <= limit + 1e-9 if most else figure >= limit - 1e-9


_BESIDE_INTEGERS = frozenset({faster_than_integers, faster_than_peers, faster_than_single_passes})
