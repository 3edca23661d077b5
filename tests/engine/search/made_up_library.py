"""A variant library whose figures follow from simple laws, over the real structure of a network, so that it takes no time."""

import numpy as np
import onnx_ir as ir

from engine.goal import Space
from engine.search import measuring
from engine.search.architecture import Architecture
from engine.search.library import DamagePart, TimesPart, VariantLibrary
from engine.search.terms import Structure, Term, Timed, Times
from engine.search.values import Point
from engine.search.variants import Variant
from engine.target import Target

SPEED = {"float32": 1.0, "static": 0.6, "dynamic": 0.8, "weights8": 1.0}


def architecture_of(model: ir.Model, **space: object) -> Architecture:
    return Architecture.of(model, Space(**space), Target())


def library_of(
    model: ir.Model, architecture: Architecture, *, seed: int = 0, float_shares: bool = True
) -> VariantLibrary:
    """Damages grow with what goes, times with multiplications, both with a taste of each group and kernel."""
    random = np.random.default_rng(seed)
    variants = []
    for name, group in architecture.groups.items():
        scale = 0.3 * random.lognormal(0, 1)
        for kept in measuring.measured_widths(architecture, name):
            damage = scale * (1 - kept / group.size) ** 2
            variants.append(_variant("width", name, damage, kept))
    variants += [_variant("block", name, 0.1 * random.lognormal(0, 1)) for name in architecture.blocks]
    for layer in architecture.layers.values():
        scale = 0.05 * random.lognormal(0, 1)
        variants += [_variant("rank", layer.name, scale / rank, rank) for rank in layer.ranks]
    pieces = [measuring.measure("structure", model, architecture, None)]
    structure = VariantLibrary.of({"structure": pieces[0]}).structure
    for precision in architecture.precisions:
        if precision != "float32":
            shares = random.dirichlet(np.ones(len(architecture.layers)))
            named = dict(zip(architecture.layers, shares.tolist(), strict=True)) if float_shares else {}
            whole = _variant("precision", precision, 0.02)
            pieces.append(DamagePart(variants=(whole,), layers=named).model_dump(mode="json"))
        pieces.append(TimesPart(times=_times(structure, architecture, precision, random)).model_dump(mode="json"))
    pieces.append(DamagePart(variants=tuple(variants)).model_dump(mode="json"))
    return VariantLibrary.of({str(place): piece for place, piece in enumerate(pieces)})


def _variant(kind: str, subject: str, damage: float, value: int | None = None) -> Variant:
    return Variant(kind=kind, subject=subject, value=value, damage=damage)


def _times(structure: Structure, architecture: Architecture, precision: str, random: np.random.Generator) -> Times:
    full = structure.full
    whole = sum(term.macs_at({}, full) for term in structure.terms)
    networks = []
    for share in (1.0, 0.75, 0.5, 0.25):
        point = architecture.uniform(share)
        terms = {
            term.name: SPEED[precision]
            * (0.9 * term.macs_at(point.widths, full) / whole + 0.1 / len(structure.terms))
            * float(random.uniform(0.8, 1.25) if share < 1 else 1.0)
            for term in structure.terms
        }
        networks.append(
            Timed(
                widths=point.widths,
                ratio=sum(terms.values()),
                ms=1.0,
                kernels_ms=1.0,
                terms=terms,
                size_bytes=_bytes(structure, precision, point),
            )
        )
    return Times(precision=precision, networks=tuple(networks), layers=tuple(architecture.layers))


def _bytes(structure: Structure, precision: str, point: Point) -> int:
    def of(term: Term) -> float:
        return sum(
            (1 if tensor.weight and precision != "float32" else tensor.item)
            * tensor.elements(point.widths, structure.full)
            for tensor in term.tensors
        )

    return round(structure.overhead_bytes + sum(of(term) for term in structure.terms))
