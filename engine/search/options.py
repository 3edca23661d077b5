"""What of the passes themselves a search may turn: the fields that passes declare as `Searchable`."""

import math
from collections.abc import Iterator
from typing import get_args

import onnx_ir as ir

from engine.contract import Pass, Searchable
from engine.errors import EngineError
from engine.goal import Precision
from engine.graph import io
from engine.graph.widening import widen
from engine.passes import PASSES
from engine.search.values import Option

# What a point says in its own words.
_SAID_BY_POINTS = frozenset(
    {
        *("prune_channels.sparsity", "prune_channels.scope", "drop_blocks.count", "drop_blocks.share"),
        *("factorise.energy", "factorise.ratio", "quantize_weights.bits"),
    }
)
# Values of a range that are tried.
_STEPS = 4
# The pass that makes each precision.
PASS_OF: dict[Precision, str] = {
    "static": "quantize_static",
    "dynamic": "quantize_dynamic",
    "weights8": "quantize_weights",
    "weights4": "quantize_weights",
    "float16": "float16",
}


def objection_to(precision: Precision, model: ir.Model, *, has_data: bool) -> str | None:
    """Say why a network cannot have a precision, as the pass that makes it says it; None where it can."""
    if precision not in PASS_OF:
        return None
    kind = next(each for each in PASSES if each.model_fields["type"].default == PASS_OF[precision])
    if kind.needs_data and not has_data:
        return "The pass needs calibration data, and there are none."
    step, candidate = kind(), io.copy(model)
    if step.widens:
        widen(candidate)
    try:
        step.prepare(candidate)
        refusal = step.check(candidate)
    except EngineError as error:
        return error.message
    return None if refusal is None else refusal.reason


def searchable(kind: type[Pass]) -> dict[str, tuple[Option, ...]]:
    """Give by field of a pass the values that are worth trying, its default among them."""
    return {name: _with_default(kind, name, note) for name, note in _notes(kind)}


def options_of(precisions: tuple[Precision, ...]) -> dict[str, tuple[Option, ...]]:
    """Give what may be turned of the passes that such a search uses, as `quantize_weights.group`: values, default first."""
    used = {"prune_channels", *(PASS_OF[precision] for precision in precisions if precision in PASS_OF)}
    found: dict[str, tuple[Option, ...]] = {}
    for kind in PASSES:
        name = str(kind.model_fields["type"].default)
        if name in used:
            found |= {
                full: values
                for field, values in searchable(kind).items()
                if (full := f"{name}.{field}") not in _SAID_BY_POINTS
            }
    return found


def _notes(kind: type[Pass]) -> Iterator[tuple[str, Searchable]]:
    for name, field in kind.model_fields.items():
        # An annotation of an alternative stands inside of the union.
        inner = [note for each in get_args(field.annotation) for note in getattr(each, "__metadata__", ())]
        for note in (*field.metadata, *inner):
            if isinstance(note, Searchable):
                yield name, note


def _with_default(kind: type[Pass], name: str, note: Searchable) -> tuple[Option, ...]:
    default = kind.model_fields[name].default
    return tuple(dict.fromkeys([default, *_values(note)]))


def _values(note: Searchable) -> tuple[Option, ...]:
    if note.choices is not None:
        return note.choices
    assert note.low is not None
    assert note.high is not None
    shares = [step / (_STEPS - 1) for step in range(_STEPS)]
    if note.log:
        return tuple(float(f"{math.exp((1 - s) * math.log(note.low) + s * math.log(note.high)):.3g}") for s in shares)
    return tuple(float(f"{(1 - s) * note.low + s * note.high:.3g}") for s in shares)
