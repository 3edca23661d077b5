"""The bytes of a network's file in one precision, learnt from the files of networks of other widths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from engine.goal import Precision
from engine.search.terms import Structure, Term, Times, Widths

# Bytes of an element, and of the scale and zero point of each output, before any file was seen.
_ELEMENT: Mapping[Precision, float] = MappingProxyType(
    {"float32": 4.0, "float16": 2.0, "static": 1.0, "dynamic": 1.0, "weights8": 1.0, "weights4": 0.65}
)
_OUTPUT: Mapping[Precision, float] = MappingProxyType(
    {"float32": 0.0, "float16": 0.0, "static": 5.0, "dynamic": 5.0, "weights8": 5.0, "weights4": 0.0}
)
_TERM = 300.0
# How far the first guesses may be off, as a share, and how exactly files are to be met, as a share of their bytes.
_TRUST, _EXACT = 0.5, 1e-4
_KNOWN = 1e-9


@dataclass(frozen=True)
class Storage:
    """Bytes by elements and outputs of what is stored in the precision, by bytes of other tensors, by terms, and of the rest."""

    layers: frozenset[str]
    per_element: float
    per_output: float
    others: float
    per_term: float
    fixed: float

    @classmethod
    def learnt(cls, structure: Structure, times: Times) -> "Storage":
        """Fit it to the files of the networks that were timed; where there are few, near to what is usual."""
        precision, layers = times.precision, frozenset(times.layers)
        others = 0.5 if precision == "float16" else 1.0
        guess = np.array([_ELEMENT[precision], _OUTPUT[precision], others, _TERM, 0.0])
        guess[-1] = structure.overhead_bytes - _TERM * len(structure.terms)
        room = np.maximum(np.abs(guess) * _TRUST, 1e-9)
        # A tensor that stays as it is has the bytes that it has: files in which no layer stays in float would tell nothing of it.
        room[2] = _KNOWN
        room[-1] = max(abs(guess[-1]), structure.overhead_bytes)
        # What is not stored in the precision has the bytes that it had: networks without layers in float would tell next to nothing of it.
        room[2] = 1e-12
        if precision == "float32":
            room[:3] = 1e-12
        rows, wanted = [], []
        for network in times.networks:
            gone, floats = set(network.dropped), frozenset(network.in_float)
            alive = [term for term in structure.terms if gone.isdisjoint(term.blocks)]
            parts = sum(_features(term, structure, network.widths, layers - floats) for term in alive)
            rows.append(np.append(parts, 1.0))
            wanted.append(float(network.size_bytes))
        if not rows:
            return cls(layers, *guess.tolist())
        sizes, table = np.array(wanted), np.array(rows)
        weight = 1 / (_EXACT * sizes)
        moved = np.linalg.lstsq(
            np.vstack([table * weight[:, None] * room, np.eye(len(guess))]),
            np.concatenate([(sizes - table @ guess) * weight, np.zeros(len(guess))]),
            rcond=None,
        )[0]
        return cls(layers, *(guess + moved * room).tolist())

    def of(self, term: Term, structure: Structure, widths: Widths, *, in_float: bool = False) -> float:
        """Give the bytes of one term."""
        layers: Iterable[str] = () if in_float else self.layers
        weights = np.array([self.per_element, self.per_output, self.others, self.per_term])
        return float(_features(term, structure, widths, frozenset(layers)) @ weights)


def _features(term: Term, structure: Structure, widths: Widths, layers: frozenset[str]) -> npt.NDArray[np.float64]:
    """Give elements and outputs that are stored in the precision, bytes of other tensors, and 1 for the term."""
    full = structure.full
    elements = outputs = others = 0.0
    for tensor in term.tensors:
        count = tensor.elements(widths, full)
        if tensor.weight and term.layer in layers:
            elements += count
            outputs += term.gives.at(widths, full)
        else:
            others += tensor.item * count
    return np.array([elements, outputs, others, 1.0])
