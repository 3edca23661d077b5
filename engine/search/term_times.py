"""The time of a term at any widths, from the widths at which real kernels were timed."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.search.terms import Structure, Term, Timed, Times, Widths

Floats = npt.NDArray[np.float64]
# What of a run no term takes, by this name among the terms of a timed network.
REST = ""
# Kernels compute whole vectors of so many channels.
_VECTOR = 16
# How far in log widths a measured neighbour still says something of a kernel's taste for widths, and the weight of a
# neighbour that knows nothing.
_REACH, _DOUBT = 0.4, 0.3
_LEAST_SHARE = 1e-7


class TermTimes:
    """Shares of the original's time in one precision, by term and widths.

    Terms of one signature share what was measured: a law with non-negative parts (a constant, what is read, what is given, their
    product, in whole vectors of the kernels), fitted to relative errors, times what these and near widths took beside it.
    """

    def __init__(self, structure: Structure, times: Times) -> None:
        self._structure, self._times = structure, times
        self._known: dict[tuple[str, int, int], float] = {}
        self._laws = {signature: _Law(rows) for signature, rows in self._rows(times.networks).items() if len(rows)}

    @cached_property
    def fixed(self) -> float:
        """Give the share of the original's time that no term takes."""
        found = [each.terms[REST] for each in self._times.networks if REST in each.terms]
        return float(np.median(found)) if found else 0.0

    def share(self, term: Term, widths: Widths) -> float:
        """Give a term's time at these widths."""
        key = (term.signature, *self._size(term, widths))
        if key not in self._known:
            law = self._laws.get(term.signature)
            self._known[key] = 0.0 if law is None else law.at(*key[1:])
        return self._known[key]

    def _rows(self, networks: Sequence[Timed]) -> Mapping[str, list[tuple[float, float, float]]]:
        found: dict[str, list[tuple[float, float, float]]] = {}
        for network in networks:
            # Conversions at borders of precision are counted with whoever stands there.
            for term in () if network.in_float else self._structure.terms:
                if term.name in network.terms:
                    row = (*self._size(term, network.widths), network.terms[term.name])
                    found.setdefault(term.signature, []).append(row)
        return found

    def _size(self, term: Term, widths: Widths) -> tuple[int, int]:
        full = self._structure.full
        return term.reads.at(widths, full), term.gives.at(widths, full)


class _Law:
    def __init__(self, rows: Sequence[tuple[float, float, float]]) -> None:
        optimize: Any = import_module("scipy.optimize")
        table = np.array(rows)
        self._at = table[:, :2]
        self._share = np.maximum(table[:, 2], _LEAST_SHARE)
        features = _features(self._at)
        self._scale = np.maximum(features.max(axis=0), 1e-30)
        self._weights: Floats = optimize.nnls(features / self._scale / self._share[:, None], np.ones(len(table)))[0]
        self._beside = np.log(self._share / np.maximum(self._smooth(self._at), _LEAST_SHARE))

    def at(self, reads: float, gives: float) -> float:
        place = np.array([[reads, gives]])
        apart = np.square(np.log(np.maximum(self._at, 1) / np.maximum(place, 1))).sum(axis=1)
        near = np.exp(-apart / (2 * _REACH**2))
        beside = float((near * self._beside).sum() / (_DOUBT + near.sum()))
        return float(self._smooth(place)[0] * np.exp(beside))

    def _smooth(self, places: Floats) -> Floats:
        found: Floats = _features(places) / self._scale @ self._weights
        return found


def _features(places: Floats) -> Floats:
    vectors = np.ceil(places / _VECTOR) * _VECTOR
    reads, gives = vectors.T
    return np.stack([np.ones(len(places)), reads, gives, reads * gives], axis=1)
