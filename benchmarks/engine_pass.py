"""Apply one pass of ours to a network, nothing else: no measuring, no verification. Shows what the pass itself costs.

The request has `model`, `out` and `settings`, the pass with its type.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter

from engine.contract import Context, Pass
from engine.graph import io
from engine.passes import AnyPass
from engine.report.values import Refusal
from engine.target import Target


class RefusedError(Exception):
    """The pass does not want to."""


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Load, apply, write."""
    step: Pass = TypeAdapter(AnyPass).validate_python(request["settings"])
    model = io.load(Path(request["model"]))
    step.prepare(model)
    _agreed(step.check(model))
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        change = _agreed(step.apply(model, {}, _context(model, Path(folder))))
    step.ensures(model)
    io.strip(model)
    io.save(model, Path(request["out"]))
    return {"change": change.summary}


def _context(model: Any, checkpoint: Path) -> Context:
    return Context(
        original=model,
        target=Target(provider="cpu", threads=1, batch=1),
        calibration=None,
        select=None,
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
