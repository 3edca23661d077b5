"""How near candidates are to the network that they were made of, on samples that nothing was fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context, Samples
from engine.data.batches import padded
from engine.data.subsets import First
from engine.graph import io
from engine.measure.kinds import KINDS
from engine.measure.quality import Evaluator, Port
from engine.report.values import OutputReport
from engine.runtime import sessions
from engine.runtime.sessions import Session

_MOST_SAMPLES = 256
# On few samples a candidate may disagree more often than it may lose: most flips are between equals.
_FLIPS_PER_DROP = 3.0
_LEAST_SQNR_DB = 20.0


class CandidateFidelity:
    """Holds the outputs of the network that was given, and says how near others come.

    `drop`: the loss of the dataset's metric that is allowed. `most`: samples that are looked at.
    """

    def __init__(
        self, model: ir.Model, samples: Samples, context: Context, *, drop: float, most: int = _MOST_SAMPLES
    ) -> None:
        self._context = context
        self._samples = First(samples, most)
        self._evaluator = Evaluator(
            self._open(model), self._samples, declared=context.outputs, graph=model, run_bytes=context.run_bytes
        )
        self._run = fixed_batch(model, samples) or 1
        self._drop = drop

    def feeds(self, count: int) -> list[Mapping[str, Any]]:
        """Give some samples, as batches of the size that latency is measured at."""
        return [padded(feed, self._run) for feed in islice(self._samples.batches(self._run), count)]

    def of(self, model: ir.Model) -> dict[str, float]:
        """Give the fidelity metrics of a candidate: `metric` of the main output, `metric@output` of the others."""
        main = self._evaluator.output
        return {
            each.metric if each.output == main else f"{each.metric}@{each.output}": each.compressed
            for each in self._evaluator.evaluate(self._open(model))
        }

    def _open(self, model: ir.Model) -> "_Working":
        return _Working(sessions.session(io.to_bytes(model), self._context.untimed), self._context)

    def accepts(self, fidelity: Mapping[str, float]) -> bool:
        """Say whether a candidate is near enough to the original to be worth a look at the dataset's own metric."""
        return all(self._is_near(output, fidelity) for output in self._evaluator.outputs)

    def _is_near(self, output: OutputReport, fidelity: Mapping[str, float]) -> bool:
        def found(metric: str) -> float | None:
            return fidelity.get(metric if output.main else f"{metric}@{output.name}")

        agreement = found("top1_agreement") if output.kind == "classes" and output.main else None
        if agreement is not None:
            # One sample may always flip: fewer samples than 1 / drop could not tell otherwise.
            allowed = max(_FLIPS_PER_DROP * self._drop, 1 / len(self._samples))
            return 1 - agreement <= allowed + 1e-9
        sqnr = found("sqnr_db") if output.kind == "values" else None
        if sqnr is not None:
            return sqnr >= _LEAST_SQNR_DB
        floors = KINDS[output.kind].floors if output.kind is not None else ()
        return all((value := found(floor.metric)) is None or floor.allows(value) for floor in floors)


def least_sqnr(fidelity: Mapping[str, float]) -> float:
    """Give the signal-to-noise ratio of the output that suffers most; infinity where none has one."""
    return min((value for name, value in fidelity.items() if name.partition("@")[0] == "sqnr_db"), default=np.inf)


@dataclass(frozen=True)
class _Working:
    """A session that lets measurements of others have their turn between two batches."""

    session: Session
    context: Context

    @property
    def inputs(self) -> Sequence[Port]:
        return self.session.inputs

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        with self.context.working():
            return self.session.run(feed)
