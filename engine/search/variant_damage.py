"""Makes single variants of a network, refits what they touch in closed form, and says what they lost on the samples to choose by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context
from engine.data.subsets import First
from engine.errors import EngineError, ModelUnsupportedError
from engine.goal import Precision
from engine.graph import io, linear, macs
from engine.graph.coupling import analyse
from engine.prune.blocks import find_blocks, without
from engine.prune.reconstruct import repair
from engine.prune.refittable import refittable
from engine.prune.widths import groups_by_name
from engine.quantize import integer_types
from engine.quantize.refinement import ranges_by, sources
from engine.quantize.sensitivity import sensitivities
from engine.report.values import Refusal
from engine.runtime import processor
from engine.search.architecture import Architecture
from engine.search.candidate import read_pass, work
from engine.search.damage import damage_of
from engine.search.options import PASS_OF
from engine.search.recipe import recipe_of
from engine.search.values import Point
from engine.search.variants import Kind, Variant

# Variants are fitted to so many samples, by the multiply-accumulates that these run: a library is to cost minutes at most.
_FIT_MACS, _FEWEST_FIT, _MOST_FIT = 30_000_000_000, 64, 256
# So many of the layers behind a branch that is gone are refitted.
_BEHIND = 4
_SENSITIVITY_SAMPLES, _SENSITIVITY_S = 16, 10.0


@dataclass(frozen=True)
class VariantMaker:
    """Variants of one prepared network; `context.evaluate` judges them."""

    model: ir.Model
    architecture: Architecture
    context: Context

    def width(self, group: str, kept: int, *, refit: bool = True) -> Variant:
        """Let one group keep so many; the layers that read its channels are refitted, those that make them lose nothing."""
        readers = self._readers[group]
        step = {
            "type": "prune_channels",
            "widths": {group: kept},
            "rounds": 1,
            "reconstruct": refit,
            "exclude": [name for name in self._refittable if name not in readers],
        }
        return self._variant("width", group, kept, lambda: self._by(self.model, step))

    def block(self, name: str, *, refit: bool = True) -> Variant:
        """Leave a residual branch out; the layers behind it are refitted."""

        def make() -> ir.Model:
            block = next(each for each in find_blocks(io.copy(self.model)).found if each.name == name)
            made = without(self.model, {block.output: block.skip})
            samples = self._fitting.calibration
            if refit and samples is not None and self.context.has_data:
                order = [linear.node_name(node) for node in self.model.graph]
                behind = set(order[order.index(name) + 1 :])
                near = [each for each in self._refittable if each in behind][:_BEHIND]
                repair(
                    made,
                    self.model,
                    {},
                    samples,
                    self.context.untimed,
                    exclude=frozenset(self._refittable) - set(near),
                    working=self.context.working,
                )
            return made

        return self._variant("block", name, None, make)

    def rank(self, layer: str, rank: int) -> Variant:
        """Split one layer at a rank, solved for on what it reads."""
        step = {"type": "factorise", "ranks": {layer: rank}}
        return self._variant("rank", layer, rank, lambda: self._by(self.model, step))

    def precision(self, precision: Precision) -> Variant:
        """Store and compute the whole network in a precision, without what would be refined."""
        bodies = recipe_of(Point(precision=precision), self.architecture)
        step = next(body for body in bodies if body["type"] == PASS_OF[precision])
        return self._variant("precision", precision, None, lambda: self._by(self.model, step))

    def blame(self) -> dict[str, float]:
        """Give by layer its share of what rounding all of them to 8 bits does to the outputs; empty without data."""
        samples = self.context.select
        if samples is None or not self.context.has_data:
            return {}
        model = io.copy(self.model)
        step = read_pass({"type": "quantize_static", "improve": False, "measure_layers": False})
        step.prepare(model)
        if step.check(model) is not None:
            return {}
        found = self.context.observe(model, step.observes(model))
        size = fixed_batch(model, samples) or _SENSITIVITY_SAMPLES
        noise = sensitivities(
            model,
            ranges_by(sources(found), "min_max"),
            integer_types.choose(processor.cpu_profile()),
            [next(iter(samples.batches(size)))],
            self.context,
            seconds=_SENSITIVITY_S,
        )
        total = sum(noise.values())
        return {name: each / total for name, each in noise.items() if name in self.architecture.layers and total > 0}

    # How

    def _variant(self, kind: Kind, subject: str, value: int | None, make: Callable[[], ir.Model]) -> Variant:
        try:
            made = make()
            quality = self.context.evaluate(io.copy(made))
        except EngineError as error:
            return Variant(kind=kind, subject=subject, value=value, damage=None, failed=error.message)
        damage = damage_of(quality)
        failed = "another output than the main one is not what it was" if damage == float("inf") else None
        return Variant(
            kind=kind,
            subject=subject,
            value=value,
            damage=None if failed else damage,
            size_bytes=len(io.to_bytes(made)),
            macs=macs.total(io.copy(made)),
            parameters=sum(each.const_value.size for _, each in io.initializers(made) if each.const_value is not None),
            failed=failed,
        )

    def _by(self, model: ir.Model, body: dict[str, Any]) -> ir.Model:
        made, outcome = work(read_pass(body), model, self._fitting)
        if isinstance(outcome, Refusal):
            raise ModelUnsupportedError(outcome.reason, node=outcome.node)
        return made

    @cached_property
    def _fitting(self) -> Context:
        """Give the context with as many samples to fit to as a variant is worth."""
        samples = self.context.calibration
        if samples is None:
            return self.context
        most = max(_FEWEST_FIT, min(_MOST_FIT, _FIT_MACS // max(1, self.architecture.macs)))
        return replace(self.context, original=self.model, calibration=First(samples, most))

    @cached_property
    def _refittable(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in refittable(self.model)[0])

    @cached_property
    def _readers(self) -> dict[str, frozenset[str]]:
        """Give the layers that read each group's channels."""
        groups = groups_by_name(analyse(io.copy(self.model)).groups)
        return {
            name: frozenset(part.node for part in groups[name].slices if part.role == "in")
            for name in self.architecture.groups
        }
