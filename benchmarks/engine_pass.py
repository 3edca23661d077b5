"""Apply one pass of ours to a network, nothing else: no measuring, no verification. Shows what the pass itself costs.

The request has `model`, `out` and `settings`, the pass with its type; `calibration` is an .npz whose first axis counts
samples, of which every fifth is chosen on.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import TypeAdapter

from engine.contract import Context, Pass
from engine.graph import io
from engine.passes import AnyPass
from engine.report.values import Refusal
from engine.target import Target


class RefusedError(Exception):
    """The pass does not want to."""


class Feeds:
    """Samples out of arrays in memory."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(next(iter(self._arrays.values())))

    def batches(self, size: int) -> Iterator[Mapping[str, Any]]:
        """Yield so many samples at a time."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Load, apply, write."""
    step: Pass = TypeAdapter(AnyPass).validate_python(request["settings"])
    model = io.load(Path(request["model"]))
    step.prepare(model)
    _agreed(step.check(model))
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        change = _agreed(step.apply(model, {}, _context(model, Path(folder), _samples(request))))
    step.ensures(model)
    io.strip(model)
    io.save(model, Path(request["out"]))
    return {"change": change.summary}


def _samples(request: Mapping[str, Any]) -> tuple[Feeds, Feeds] | tuple[None, None]:
    if not request.get("calibration"):
        return None, None
    with np.load(request["calibration"], allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    chosen_on = np.arange(len(next(iter(arrays.values())))) % 5 == 4
    return tuple(Feeds({name: array[part] for name, array in arrays.items()}) for part in (~chosen_on, chosen_on))


def _context(model: Any, checkpoint: Path, samples: tuple[Feeds, Feeds] | tuple[None, None]) -> Context:
    return Context(
        original=model,
        target=Target(provider="cpu", threads=1, batch=1),
        calibration=samples[0],
        select=samples[1],
        evaluate=_refuse,
        observe=_refuse,
        progress=lambda fraction, message: print(f"{fraction:.2f} {message}", flush=True),
        race=_refuse,
        working=nullcontext,
        measuring=nullcontext,
        checkpoint=checkpoint,
    )


def _refuse(*_arguments: Any) -> NoReturn:
    raise RefusedError("this pass wants data or measurements, so it cannot be run on its own")


def _agreed(outcome: Any) -> Any:
    if isinstance(outcome, Refusal):
        raise RefusedError(outcome.reason)
    return outcome
