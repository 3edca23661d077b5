"""Judges candidates of a pass on calibration samples that nothing was fitted to: how near their outputs are to the original's."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate import Part
from engine.calibrate.observe import fixed_batch
from engine.contract import Context, Samples
from engine.data.batches import sample_count
from engine.graph import io
from engine.runtime import sessions
from engine.target import Target

_MOST_SAMPLES = 128
_MOST_BYTES = 64 << 20
_BATCH = 8
_FEWEST_SAMPLES = 4
# A perfect copy is not infinitely near.
_CEILING_DB = 200.0

Outputs = Mapping[str, npt.NDArray[Any]]


class OutputFidelity:
    """Holds the float network's outputs on the held-out samples and scores other networks against them."""

    def __init__(self, model: ir.Model, samples: Samples | None, target: Target) -> None:
        self._target = target
        self._feeds: list[Mapping[str, Any]] = []
        self._wanted: list[Outputs] = []
        fixed = fixed_batch(model, samples)
        held_out = Part(samples, held_out=True, run=fixed or 1) if samples is not None and len(samples) else ()
        if len(held_out) < max(_FEWEST_SAMPLES, fixed or 1):
            return
        assert isinstance(held_out, Part)
        session = sessions.session(io.to_bytes(model), target)
        size = fixed or _BATCH
        used = 0
        for feed in islice(held_out.batches(size), max(1, _MOST_SAMPLES // size)):
            if fixed and sample_count(feed) < fixed:
                break
            outputs = _floats(session.run(feed))
            self._feeds.append(feed)
            self._wanted.append(outputs)
            used += sum(array.nbytes for array in (*outputs.values(), *feed.values()))
            if used > _MOST_BYTES:
                break

    @classmethod
    def of(cls, model: ir.Model, context: Context) -> "OutputFidelity":
        """Give it for a pass's own network; without samples where the job has no data."""
        return cls(model, context.calibration if context.has_data else None, context.target)

    @property
    def ready(self) -> bool:
        """Say whether there is anything to score on."""
        return any(self._wanted)

    @property
    def feeds(self) -> list[Mapping[str, Any]]:
        """Give the held-out batches."""
        return self._feeds

    def decibels(self, model: ir.Model) -> float:
        """Give signal to noise over all float outputs, each output counting alike."""
        session = sessions.session(io.to_bytes(model), self._target)
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            found = session.run(feed)
            for name, array in wanted.items():
                error = np.asarray(found[name], np.float64) - array
                signal[name] = signal.get(name, 0.0) + float(np.square(array, dtype=np.float64).sum())
                noise[name] = noise.get(name, 0.0) + float(np.square(error).sum())
        shares = [noise[name] / signal[name] if signal[name] > 0 else float(noise[name] > 0) for name in signal]
        mean = float(np.mean(shares))
        return min(-10 * float(np.log10(mean)), _CEILING_DB) if mean > 0 else _CEILING_DB


def _floats(outputs: Outputs) -> Outputs:
    return {name: array for name, array in outputs.items() if array.dtype.kind == "f"}
