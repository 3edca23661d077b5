"""What channels weigh: their share of the parameters and of the multiply-accumulates."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from engine.graph.execution import Execution, Member
from engine.graph.labels import Array


class Costs:
    """What atoms weigh: their share of each initializer and of each node's multiply-accumulates."""

    def __init__(
        self,
        model: ir.Model,
        members: tuple[Member, ...],
        runs: Sequence[Execution],
        root: Array,
        macs: Mapping[str, int],
    ) -> None:
        self._members = members
        self._macs = macs
        self._sizes = {
            name: value.const_value.size
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._weights: dict[str, dict[str, int]] = {}
        for member in members:
            if member.node in macs and len(member.labels.shape) > 1:
                self._weights.setdefault(member.node, {})[member.initializer] = self._sizes[member.initializer]
        # Products of two activations: labels of what they read and write.
        self._products: dict[str, list[Array]] = {}
        for node in model.graph:
            name = str(node.name)
            if name in macs and name not in self._weights:
                for run in runs:
                    found = [run.label(value) for value in (*node.inputs[:3], node.outputs[0])]
                    self._products.setdefault(name, []).extend(root[part.atoms] for part in found if part is not None)

    def _worth(self, member: Member) -> tuple[float, float]:
        weights = self._weights.get(member.node, {})
        share = weights.get(member.initializer, 0) / max(1, sum(weights.values()))
        return float(self._sizes[member.initializer]), share * self._macs.get(member.node, 0)

    def by_atom(self) -> dict[int, tuple[float, float]]:
        """Give the parameters and multiply-accumulates that each atom takes with it when nothing else has gone."""
        found: dict[int, list[float]] = {}
        for member in self._members:
            parameters, macs = self._worth(member)
            atoms, counts = np.unique(member.labels.atoms, return_counts=True)
            for atom, count in zip(atoms.tolist(), (counts / member.labels.atoms.size).tolist(), strict=True):
                cost = found.setdefault(atom, [0.0, 0.0])
                cost[0] += count * parameters
                cost[1] += count * macs
        for name, tables in self._products.items():
            largest: dict[int, float] = {}
            for table in tables:
                atoms, counts = np.unique(table, return_counts=True)
                for atom, count in zip(atoms.tolist(), (counts / table.size).tolist(), strict=True):
                    largest[atom] = max(largest.get(atom, 0.0), count)
            for atom, share in largest.items():
                found.setdefault(atom, [0.0, 0.0])[1] += share * self._macs[name]
        found.pop(0, None)
        return {atom: (cost[0], cost[1]) for atom, cost in found.items()}

    def shares(self, free: Array) -> tuple[float, float]:
        """Add up the parameters and multiply-accumulates that belong to at least one free atom."""
        by_initializer: dict[str, dict[int, Array]] = {}
        worth: dict[str, tuple[float, float]] = {}
        for member in self._members:
            axes = by_initializer.setdefault(member.initializer, {})
            mask = free[member.labels.atoms]
            axes[member.labels.axis] = mask | axes[member.labels.axis] if member.labels.axis in axes else mask
            old = worth.get(member.initializer, (0.0, 0.0))
            new = self._worth(member)
            worth[member.initializer] = (new[0], max(old[1], new[1]))
        parameters = macs = 0.0
        for name, axes in by_initializer.items():
            kept = float(np.prod([1.0 - mask.mean() for mask in axes.values()]))
            parameters += worth[name][0] * (1.0 - kept)
            macs += worth[name][1] * (1.0 - kept)
        for name, tables in self._products.items():
            macs += self._macs[name] * max((float(free[table].mean()) for table in tables), default=0.0)
        return parameters, macs
