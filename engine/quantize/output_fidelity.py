"""How near the outputs of a pass's candidates are to the original's, on the samples to choose by."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import RUN_BYTES, Context, Samples
from engine.data.batches import sample_count
from engine.data.parts import FEWEST_TO_REFINE
from engine.graph import io, row_sets
from engine.graph.activations import affordable_batch
from engine.graph.endings import endings
from engine.outputs import DEFAULT_WEIGHTS, OutputDeclaration
from engine.runtime import sessions
from engine.target import Target

_MOST_SAMPLES = 128
_MOST_BYTES = 64 << 20
_BATCH = 8
# Of running the samples once: each of a dozen candidates takes as long.
_SECONDS = 3.0
# A perfect copy is not infinitely near.
_CEILING_DB = 200.0

Outputs = Mapping[str, npt.NDArray[Any]]
Working = Callable[[], AbstractContextManager[None]]


class OutputFidelity:
    """Holds the float network's outputs on samples to choose by, and scores other networks against them.

    `working` is held for one batch at a time.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Samples | None,
        target: Target,
        working: Working,
        declared: Mapping[str, OutputDeclaration] | None = None,
        *,
        run_bytes: int = RUN_BYTES,
    ) -> None:
        self._target, self._working = target, working
        self._weights = _weights(model, declared or {})
        self._feeds: list[Mapping[str, Any]] = []
        self._wanted: list[Outputs] = []
        fixed = fixed_batch(model, samples)
        if samples is None or len(samples) < max(FEWEST_TO_REFINE, fixed or 1):
            return
        session = sessions.session(io.to_bytes(model), target)
        size = fixed or affordable_batch(model, samples, _BATCH, budget=run_bytes, target=target)
        used, started = 0, time.monotonic()
        for feed in islice(samples.batches(size), max(1, _MOST_SAMPLES // size)):
            if fixed and sample_count(feed) < fixed:
                break
            with working():
                found = _floats(session.run(feed))
            outputs = {name: sessions.owned(array) for name, array in found.items() if self._weights.get(name, 1.0)}
            self._feeds.append(feed)
            self._wanted.append(outputs)
            if time.monotonic() - started > _SECONDS and len(self._feeds) * size >= FEWEST_TO_REFINE:
                break
            used += sum(array.nbytes for array in (*outputs.values(), *feed.values()))
            if used > _MOST_BYTES:
                break

    @classmethod
    def of(cls, model: ir.Model, context: Context) -> "OutputFidelity":
        """Give it for a pass's own network; without samples where the job has no data."""
        samples = context.select if context.has_data else None
        return cls(model, samples, context.untimed, context.working, context.outputs, run_bytes=context.run_bytes)

    @property
    def ready(self) -> bool:
        """Say whether there is anything to score on."""
        return any(self._wanted)

    @property
    def feeds(self) -> list[Mapping[str, Any]]:
        """Give the batches that are scored on."""
        return self._feeds

    def decibels(self, model: ir.Model) -> float:
        """Give signal to noise over all float outputs, each by its weight."""
        session = sessions.session(io.to_bytes(model), self._target)
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            with self._working():
                found = session.run(feed)
                for name, array in wanted.items():
                    signal[name] = signal.get(name, 0.0) + row_sets.energy(array)
                    noise[name] = noise.get(name, 0.0) + row_sets.noise(array, found[name], name)
        shares = [noise[name] / signal[name] if signal[name] > 0 else float(noise[name] > 0) for name in signal]
        mean = float(np.average(shares, weights=[self._weights.get(name, 1.0) for name in signal]))
        return min(-10 * float(np.log10(mean)), _CEILING_DB) if mean > 0 else _CEILING_DB


def _weights(model: ir.Model, declared: Mapping[str, OutputDeclaration]) -> dict[str, float]:
    """Give how much each output counts: 0 for one that nobody reads, little for the state of a recurrent operator."""
    found = {}
    for name, ending in endings(model).items():
        said = declared.get(name)
        kind = said.kind if said and said.kind else "state" if ending.state_of else None
        usual = 1.0 if kind is None else DEFAULT_WEIGHTS.get(kind, 1.0)
        found[name] = 0.0 if said and said.ignore else said.weight if said and said.weight else usual
    return found


def _floats(outputs: Outputs) -> Outputs:
    return {name: array for name, array in outputs.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"}
