"""The table of what came of the networks of wheels: a line for each recipe, with onnxruntime's own quantization in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import documents
from benchmarks.documents import megabytes
from benchmarks.field import measure, networks
from benchmarks.field.measure import OURS, PEER, Result
from benchmarks.field.networks import Network

# What each network came to lies there; the table is made of all of them.
GROUP = "field/each"
HEADER = (
    "network",
    "recipe",
    "smaller",
    "speed",
    "quality",
    "ONNX Runtime's own, same samples",
    "peak",
    "time",
    "what it is, or why not",
)
_LIKE: Mapping[str, Sequence[str]] = {
    "static": ("static", "static per tensor"),
    "dynamic": ("dynamic",),
    "mixed": ("static", "static per tensor", "dynamic"),
    "weights": (),
}
# Steps before the one that a recipe is about, where there was nothing to do for them.
_PREPARES = (
    "fuse refused",
    "simplify refused: The network is as simple as it gets",
    "simplify refused: Nothing is gained",
    "simplify refused: The file grew",
)
# Where its column holds all that came before in the same table.
_AS_ABOVE = "as above"
_CLOCKS = {
    "": "",
    " by CPU time, because the machine was busy": " (CPU)",
    ", measured on a busy machine": " (busy)",
}


@dataclass(frozen=True)
class Measured:
    """What came of one network; the original is the first result."""

    network: Network
    results: Sequence[Result]

    def record(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {"network": self.network.name, "results": [each.record() for each in self.results]}

    def table(self) -> str:
        """Give its table alone."""
        return table([self])

    def rows(self) -> Iterator[list[str]]:
        """Yield a row for each of our results."""
        ours = [each for each in self.results if each.maker == OURS]
        told: set[str] = set()
        for at, result in enumerate(ours):
            peers = list(self._peers(result))
            named = {other.setting for other in peers}
            yield [
                f"**{self.network.name}**, {megabytes(self._original)}" if at == 0 else "",
                result.setting,
                self._smaller(result),
                _speed(result),
                self._quality(result, unit=True),
                _AS_ABOVE if named and named <= told else "; ".join(map(self._peer, peers)),
                "" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f} MB",
                _spent(result),
                self._outcome(result),
            ]
            told |= named

    def faults(self) -> Iterator[str]:
        """Yield the bars that are missed."""
        for each in self.results:
            yield from (f"{self.network.name}, {each.setting}: {fault}" for fault in each.faults)

    @property
    def _original(self) -> int:
        return self.results[0].bytes or 0

    def _smaller(self, result: Result) -> str:
        return f"{self._original / result.bytes:.2f}x" if result.bytes else ""

    def _quality(self, result: Result, *, unit: bool) -> str:
        if result.score is None:
            return ""
        judge = self.network.judge
        return f"{judge.name} {result.score:.2f} {judge.unit}".strip() if unit else f"{result.score:.2f} {judge.unit}"

    def _peers(self, result: Result) -> Iterator[Result]:
        for each in self.results:
            if each.maker == PEER and each.setting in _LIKE[result.setting]:
                yield each

    def _peer(self, other: Result) -> str:
        setting = other.setting.removeprefix("static ")
        if other.problem is not None:
            return f"{setting}: {other.problem}"
        parts = [self._smaller(other), _speed(other), self._quality(other, unit=False)]
        return f"{setting}: {', '.join(part.strip() for part in parts if part)}"

    def _outcome(self, result: Result) -> str:
        if result.problem is not None:
            return measure.refusal(result.problem) or result.problem
        main = self.network.main or next(iter(result.outputs), None)
        judged = [] if main is None else [result.outputs[main]]
        refused = [step for step in result.steps if " refused" in step and not step.startswith(_PREPARES)]
        return "; ".join([*judged, *(step.rstrip(".") for step in refused)])


def stored() -> list[Measured]:
    """Give all that was measured so far, in the order of the list of networks."""
    folder = documents.RESULTS / GROUP
    found = []
    for network in networks.NETWORKS:
        path = folder / f"{network.name}.json"
        if path.exists():
            results = json.loads(path.read_text())["results"]
            found.append(Measured(network, [Result(**each) for each in results]))
    return found


def table(measured: Sequence[Measured]) -> str:
    """Give the Markdown: the table, and under it the bars that are missed."""
    told = [f"* {fault}" for each in measured for fault in each.faults()]
    left_out = any(result.timed_out for each in measured for result in each.results)
    held = (
        "What was measured holds every bar; what did not end in time is left out." if left_out else "Every bar holds."
    )
    return "\n\n".join(
        [documents.table(HEADER, [row for each in measured for row in each.rows()]), "\n".join(told) or held]
    )


def _speed(result: Result) -> str:
    if result.unchanged:
        return "fp32 kept"
    return "" if result.speed is None else f"{result.speed:.2f}x{_CLOCKS.get(result.clock, result.clock)}"


def _spent(result: Result) -> str:
    return "" if result.seconds is None else f"{result.seconds:.0f} s, {result.cpu_seconds or 0:.0f} s CPU"
