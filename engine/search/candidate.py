"""The network of a point: the passes of its recipe, one after the other, without the races and the rolling back of a job."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine.contract import Context, Pass
from engine.errors import ModelUnsupportedError, SpecInvalidError
from engine.graph import io, macs, quantized
from engine.graph.coupling import analyse
from engine.graph.declaration import Declaration
from engine.graph.widening import widen
from engine.passes import AnyPass
from engine.prune.widths import group_widths
from engine.report.values import Change, Refusal
from engine.search.architecture import Architecture
from engine.search.recipe import recipe_of
from engine.search.values import Level, Point
from engine.solve.blas_threads import one_blas_thread

_PASS: TypeAdapter[Pass] = TypeAdapter(AnyPass, config=ConfigDict(defer_build=True))
# What a point is made of: without them it is another network. The others make it better, where they can.
_ESSENTIAL = frozenset(
    {
        *("drop_blocks", "prune_channels", "factorise"),
        *("quantize_static", "quantize_dynamic", "quantize_weights", "float16"),
    }
)
_PREPARES = ("simplify", "fuse")
# What is as good where there is nothing for it to do.
_INCIDENTAL = frozenset({"fuse"})
# Of networks with fewer weights layers are small.
_LARGE = 5_000_000
_PRECISIONS = frozenset({"quantize_static", "quantize_dynamic", "quantize_weights", "float16"})


@dataclass(frozen=True)
class Candidate:
    """A network that was made, its multiply-accumulates at batch 1, and what of its recipe could not be done, in words."""

    model: ir.Model
    macs: int
    left_out: tuple[str, ...] = ()


def read_pass(body: Any) -> Pass:
    """Give the pass that a body of a recipe describes; raises SpecInvalidError."""
    try:
        return _PASS.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecInvalidError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def work(step: Pass, model: ir.Model, context: Context) -> tuple[ir.Model, Change | Refusal]:
    """Do a pass's work on a copy as a job does it; give the copy, or the model as it came where the pass refuses."""
    made, declared = io.copy(model), Declaration.of(model)
    widened = None
    if step.widens:
        widened = widen(made)
        original = io.copy(context.original)
        widen(original)
        context = replace(context, original=original)
    step.prepare(made)
    refusal = step.check(made)
    if refusal is not None:
        return model, refusal
    if step.needs_data and not context.has_data:
        reason = "The pass needs calibration data, and there are none."
        return model, Refusal(code="needs_data", reason=reason)
    observed = context.observe(made, step.observes(made))
    with _threads(made):
        outcome = step.apply(made, observed, context)
    if isinstance(outcome, Refusal):
        return model, outcome
    step.ensures(made)
    if widened is not None:
        widened.narrow(made)
    declared.restore(made, widths_may_change=step.widths_may_change)
    io.strip(made)
    return made, outcome


def _threads(model: ir.Model) -> AbstractContextManager[None]:
    """Give small layers one thread: several are slower for them, and far slower beside other trials on the same host."""
    weights = sum(value.const_value.size for _, value in io.initializers(model) if value.const_value is not None)
    return one_blas_thread() if weights < _LARGE else nullcontext()


def make(
    model: ir.Model,
    point: Point,
    architecture: Architecture,
    context: Context,
    *,
    level: Level = "refit",
    train_s: float = 0.0,
    seed: int = 0,
    inherited: ir.Model | None = None,
) -> Candidate:
    """Make a point's network of one that is simplified and fused, or of what is left of it in `inherited`, whose weights may be trained.

    Raises:
        SpecInvalidError: there is no such network.
        ModelUnsupportedError: one of its steps cannot be done.
    """
    architecture.check(point)
    point = architecture.normalise(point)
    left_out: tuple[str, ...] = ()
    if inherited is not None:
        rest = rest_of(inherited, point, architecture)
        if isinstance(rest, str):
            left_out = (f"It goes on from the original: {rest}.",)
        else:
            model, point = inherited, rest
    made = _run(model, _steps(architecture, point, level=level, train_s=train_s, seed=seed), context)
    return replace(made, left_out=(*left_out, *made.left_out))


def prepared(model: ir.Model, context: Context) -> ir.Model:
    """Give a network as all recipes begin with it: simplified and fused. It is for the caller to verify that nothing moved."""
    for step in (read_pass({"type": name}) for name in _PREPARES):
        model, _ = work(step, model, context)
    return model


def rest_of(inherited: ir.Model, point: Point, architecture: Architecture) -> Point | str:
    """Give what is still to be done to another candidate's network to make a point of it, or say why it cannot be done."""
    if quantized.first_quantized(inherited) is not None:
        return "the network to go on from is quantized, and integers cannot be cut or trained"
    nodes = {node.name or str(node.outputs[0].name) for node in inherited.graph}
    gone = architecture.gone(point)
    kept = (name for name in architecture.blocks if name not in gone and name not in point.dropped)
    lost = next((name for name in kept if name not in nodes), None)
    if lost is not None:
        return f"the network to go on from has lost the branch of `{lost}`, which this one keeps"
    split = {name for name, layer in architecture.layers.items() if layer.ranks and f"{name}_down" in nodes}
    strange = next((name for name in sorted(split) if name not in point.ranks), None)
    if strange is not None:
        return f"layer `{strange}` of the network to go on from is split, and here it is whole"
    widths = {}
    now = group_widths(analyse(io.copy(inherited)))
    for at in (group for group in architecture.groups.values() if not gone.issuperset(group.producers)):
        alias = (f"{at.kind}:{layer}" for layer in at.producers)
        left = next((now[name] for name in (at.name, *alias) if name in now), at.cuts.least)
        wanted = point.widths.get(at.name, at.size)
        if left < wanted:
            return f"the network to go on from has {left} of `{at.name}`, and this one {wanted}"
        if left > wanted:
            widths[at.name] = wanted
    return point.model_copy(
        update={
            "dropped": tuple(name for name in point.dropped if name in nodes),
            "widths": widths,
            "ranks": {name: rank for name, rank in point.ranks.items() if name not in split},
        }
    )


def _steps(architecture: Architecture, point: Point, *, level: Level, train_s: float, seed: int) -> list[Pass]:
    architecture.check(point)
    bodies = recipe_of(point, architecture, train_s=train_s, level=level, seed=seed)
    return [read_pass(body) for body in bodies[len(_PREPARES) :]]


def _run(model: ir.Model, steps: Sequence[Pass], context: Context) -> Candidate:
    left_out = []
    work_left = macs.total(model)
    for number, step in enumerate(steps):
        folder = context.checkpoint / f"{number:02}"
        folder.mkdir(exist_ok=True)
        model, outcome = work(step, model, replace(context, checkpoint=folder))
        name = str(type(step).model_fields["type"].default)
        if isinstance(outcome, Refusal):
            if name in _ESSENTIAL:
                raise ModelUnsupportedError(f"{name}: {outcome.reason}", node=outcome.node, hint=outcome.hint)
            if name not in _INCIDENTAL:
                left_out.append(f"{name}: {outcome.reason}")
        elif name not in _PRECISIONS:
            work_left = macs.total(model)
    return Candidate(model, work_left, tuple(left_out))
