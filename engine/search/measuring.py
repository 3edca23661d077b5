"""Measures a variant library part by part: each part takes seconds, by itself, on any worker of the target class."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from engine.contract import Context
from engine.errors import EngineError, SpecInvalidError
from engine.graph import io
from engine.runtime.sessions import Feed
from engine.search import kernel_times
from engine.search.architecture import Architecture
from engine.search.library import DamagePart, Part, StructurePart, TimesPart
from engine.search.structure import structure_of
from engine.search.terms import Times
from engine.search.values import Point
from engine.search.variant_damage import VariantMaker
from engine.search.variants import Variant

STRUCTURE = "structure"
# Shares of a group whose damage is measured; between them it is interpolated.
_SHARES = (0.75, 0.5, 0.25)
# The same of networks with so many multiply-accumulates: each variant takes seconds.
_LARGE_MACS, _LARGE_SHARES = 200_000_000, (0.75, 0.5)
# Branches, and layers that may be split, of one part.
_BLOCKS_AT_ONCE, _LAYERS_AT_ONCE = 4, 4


def parts(architecture: Architecture) -> tuple[str, ...]:
    """Name the parts of a network's library, what is needed most first. The structure comes first: nothing works without it."""
    precisions = architecture.precisions
    named = [STRUCTURE]
    rounds = {each: len(kernel_times.networks(architecture, each)) for each in precisions}
    named += [f"times:{each}:0" for each in precisions]
    named += [f"precision:{each}" for each in precisions if each != "float32"]
    named += [f"blocks:{number}" for number in range(-(-len(architecture.blocks) // _BLOCKS_AT_ONCE))]
    named += [f"group:{name}" for name in architecture.groups]
    named += [f"times:{each}:{number}" for each in precisions for number in range(1, rounds[each])]
    split = [layer for layer in architecture.layers.values() if layer.ranks]
    named += [f"ranks:{number}" for number in range(-(-len(split) // _LAYERS_AT_ONCE))]
    return tuple(named)


def measure(
    part: str, model: ir.Model, architecture: Architecture, context: Context, feeds: Sequence[Feed] = ()
) -> dict[str, Any]:
    """Measure one part of a prepared network's library; give it as JSON.

    Args:
        part: one of `parts(architecture)`.
        model: the original as all candidates begin with it; `context.original` is what latency is a ratio to.
        architecture: of that network.
        context: its evaluation judges variants; it measures with the host to itself.
        feeds: what is run where time is taken, by default samples in the target's batch.

    Raises:
        SpecInvalidError: there is no such part.
    """
    kind, _, rest = part.partition(":")
    found: Part
    if part == STRUCTURE:
        found = StructurePart(structure=structure_of(model, architecture, len(io.to_bytes(model))))
    elif part not in parts(architecture):
        raise SpecInvalidError(f"The library of this network has no part `{part}`.")
    elif kind == "times":
        precision, _, number = rest.partition(":")
        points = next(
            kernel_times.networks(architecture, each)[int(number)]
            for each in architecture.precisions
            if each == precision
        )
        found = _times(points, model, architecture, context, feeds)
    else:
        found = _damage(kind, rest, VariantMaker(model, architecture, context))
    return found.model_dump(mode="json")


def _times(
    points: Sequence[Point], model: ir.Model, architecture: Architecture, context: Context, feeds: Sequence[Feed]
) -> TimesPart:
    try:
        times = kernel_times.timed(points, model, architecture, context, feeds)
    except EngineError as error:
        times = Times(precision=points[0].precision, networks=(), failed=error.message)
    return TimesPart(times=times)


def _damage(kind: str, rest: str, maker: VariantMaker) -> DamagePart:
    architecture = maker.architecture
    variants: list[Variant] = []
    layers: dict[str, float] = {}
    if kind == "precision":
        precision = next(each for each in architecture.precisions if each == rest)
        variants, layers = [maker.precision(precision)], maker.blame() if precision != "float16" else {}
    elif kind == "group":
        variants = [maker.width(rest, kept) for kept in measured_widths(architecture, rest)]
    elif kind == "blocks":
        names = list(architecture.blocks)[int(rest) * _BLOCKS_AT_ONCE :][:_BLOCKS_AT_ONCE]
        variants = [maker.block(name) for name in names]
    else:
        split = [layer for layer in architecture.layers.values() if layer.ranks]
        some = split[int(rest) * _LAYERS_AT_ONCE :][:_LAYERS_AT_ONCE]
        variants = [maker.rank(layer.name, rank) for layer in some for rank in layer.ranks]
    return DamagePart(variants=tuple(variants), layers=layers)


def measured_widths(architecture: Architecture, group: str) -> tuple[int, ...]:
    """Choose the widths of a group whose damage is measured, the most first: of many, those nearest to a few shares."""
    widths = architecture.groups[group].widths[1:]
    shares = _LARGE_SHARES if architecture.macs > _LARGE_MACS else _SHARES
    if len(widths) <= len(shares):
        return widths
    nearest = dict.fromkeys(architecture.groups[group].nearest(share) for share in shares)
    return tuple(width for width in nearest if width in widths)
