"""Networks of a point's shape, for their time and bytes alone: which channels go does not matter, and nothing is refitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from engine.contract import Context, Observe
from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.coupling import Coupling, analyse
from engine.graph.slicing import remove
from engine.prune.blocks import drop, find_blocks
from engine.prune.widths import groups_by_name
from engine.report.values import Refusal
from engine.search.architecture import Architecture
from engine.search.candidate import read_pass, work
from engine.search.options import PASS_OF
from engine.search.recipe import recipe_of
from engine.search.values import Point


@dataclass
class Sketches:
    """Makes them from one prepared network. Ranges are those of the whole network: only that there are some matters."""

    model: ir.Model
    architecture: Architecture
    context: Context
    _ranges: dict[Observe, Any] = field(default_factory=dict, repr=False)

    def make(self, point: Point) -> ir.Model:
        """Give a network of this shape.

        Raises:
            ModelUnsupportedError: there is none in this precision; the reason is that of the pass that makes it.
        """
        with self.context.working():
            made = self._cut(point.widths) if point.widths else io.copy(self.model)
            found = {block.name: (block.output, block.skip) for block in find_blocks(made).found}
            drop(made, dict(found[name] for name in point.dropped if name in found))
        context = replace(self.context, observe=self._observed)
        for body in recipe_of(point, self.architecture):
            if body["type"] in PASS_OF.values() or body.get("attention"):
                made, outcome = work(read_pass(body), made, context)
                if isinstance(outcome, Refusal) and body["type"] in PASS_OF.values():
                    raise ModelUnsupportedError(outcome.reason, node=outcome.node)
        return made

    @cached_property
    def _analysed(self) -> tuple[ir.Model, Coupling]:
        copy = io.copy(self.model)
        return copy, analyse(copy)

    def _cut(self, widths: Mapping[str, int]) -> ir.Model:
        model, coupling = self._analysed
        groups, gone = groups_by_name(coupling.groups), set[int]()
        for name, kept in widths.items():
            group, excess, count = groups[name], len(groups[name].atoms) - kept, 0
            for unit in coupling.units(group):
                excess -= len(unit.atoms)
                if excess < 0:
                    break
                count += 1
            gone.update(atom for unit in coupling.choose(group, count, beside=gone) for atom in unit.atoms)
        return remove(model, coupling, gone)

    def _observed(self, model: ir.Model, requests: Sequence[Observe]) -> Mapping[Observe, Any]:
        """Give what was recorded of tensors of the same names, and record only what is missing."""
        missing = [each for each in requests if each not in self._ranges]
        if missing:
            self._ranges |= self.context.observe(model, missing)
        # Without data nothing is recorded, and passes that take ranges where there are some do without.
        return {each: self._ranges[each] for each in requests if each in self._ranges}
