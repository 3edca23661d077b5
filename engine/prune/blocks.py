"""The work of the `drop_blocks` pass: residual branches Add(x, f(x)) that the network hardly misses."""

import heapq
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import onnx_ir as ir

from engine.contract import Context
from engine.data.subsets import First
from engine.errors import EngineError
from engine.graph import io
from engine.graph.sizes import infer
from engine.measure.acceptance import broken_beside_main, main_metrics, noise_share
from engine.measure.quality import Evaluator, Port
from engine.report.detail_parts import left_alone
from engine.report.pruning_details import DropBlocksDetails, ResidualBranch
from engine.report.values import Change, Refusal
from engine.runtime import sessions

_SUM = frozenset({"Add"})
# What a shortcut consists of that changes the shape: one convolution, and what may stand around it.
_SHORTCUT = frozenset({"Conv", "BatchNormalization", "AveragePool", "MaxPool", "Identity"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# A side with one of these comes from a smaller map: the sum joins levels of a pyramid, and is no residual block.
_UPWARDS = frozenset({"Resize", "Upsample", "ConvTranspose"})


@dataclass(frozen=True)
class BlockSettings:
    """How many branches may go, and how much they may be missed."""

    count: int | None
    share: float | None
    # Limits of the damage of all together: where outputs score classes in nats, elsewhere as their signal-to-noise ratio.
    max_kl: float | None
    min_sqnr_db: float | None
    samples: int
    # Names of the sums whose branches may go; empty: all.
    only: frozenset[str] = frozenset()
    # Names of the sums whose branches go, whatever they cost.
    exactly: frozenset[str] = frozenset()

    def most(self, blocks: int) -> int:
        """Give how many of so many branches may go."""
        limits = [blocks]
        if self.count is not None:
            limits.append(self.count)
        if self.share is not None:
            limits.append(max(1, math.floor(self.share * blocks)))
        return min(limits)


@dataclass(frozen=True)
class Block:
    """A residual branch: without it the sum's output is `skip`."""

    name: str
    sum: ir.Node
    skip: int  # which input of the sum stays
    nodes: tuple[ir.Node, ...] = field(repr=False)  # nobody else needs them

    @property
    def output(self) -> str:
        """Name of the sum's output: it is unique, names of nodes need not be."""
        return str(self.sum.outputs[0].name)

    @property
    def parameters(self) -> int:
        """Number of weights that go."""
        return _weights(set(self.nodes))


@dataclass
class Blocks:
    """Branches in topological order, and sums that only look like one, with the reason."""

    found: list[Block] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def find_blocks(model: ir.Model) -> Blocks:
    """List the residual branches whose removal keeps the graph valid; nothing is changed."""
    shapes = infer(model)
    blocks = Blocks()
    for node in model.graph:
        if node.op_type not in _SUM or any(value is None or value.is_initializer() for value in node.inputs):
            continue
        skip = _skip(node)
        if skip is None:
            continue
        name = node.name or str(node.outputs[0].name)
        kept = node.inputs[skip]
        assert kept is not None
        block = Block(name, node, skip, tuple(_dead(model, node, skip)))
        branch = node.inputs[1 - skip]
        if branch is None:
            continue
        between = _between(kept, branch) or _own(branch, _ancestors(kept))
        if not _weights(between):
            continue  # a formula, like the one of GELU: nothing to save
        before, after = shapes.shape(kept), shapes.shape(node.outputs[0])
        if before is None or after is None:
            blocks.refused[name] = "its shape could not be inferred"
        elif before != after:
            continue  # a mask that is added to attention scores: the sum is wider than what would stay
        elif node.outputs[0].is_graph_output():
            blocks.refused[name] = "it gives an output of the network"
        elif not between <= set(block.nodes):
            blocks.refused[name] = "a part of it is needed elsewhere"
        else:
            blocks.found.append(block)
    return blocks


def without(model: ir.Model, blocks: Mapping[str, int]) -> ir.Model:
    """Copy a network without these branches, given as {name of the sum's output: which input stays}."""
    candidate = io.copy(model)
    drop(candidate, blocks)
    return candidate


def drop(model: ir.Model, blocks: Mapping[str, int]) -> None:
    """Remove branches in place."""
    for output, skip in blocks.items():
        node = next((node for node in model.graph if node.outputs[0].name == output), None)
        if node is None:
            continue  # it stood inside of a branch that is gone
        kept = node.inputs[skip]
        assert kept is not None
        node.outputs[0].replace_all_uses_with(kept)
        _rectify_once(kept)
        _remove_dead(model)


def _rectify_once(value: ir.Value) -> None:
    """Leave out each Relu of what a Relu gave: a block's own comes after its sum, which is gone."""
    producer = value.producer()
    if producer is None or producer.op_type != "Relu":
        return
    for node in [use.node for use in value.uses()]:
        if node.op_type == "Relu" and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)


def drop_blocks(model: ir.Model, settings: BlockSettings, context: Context) -> Change | Refusal:
    """Score every branch on the samples to choose by, then remove the cheapest ones in place."""
    blocks = find_blocks(model)
    if settings.exactly:
        return _drop_named(model, blocks, settings.exactly)
    most = settings.most(len(blocks.found))
    if settings.only:
        blocks.refused.update(
            (block.name, "`only` does not name it") for block in blocks.found if block.name not in settings.only
        )
        blocks.found = [block for block in blocks.found if block.name in settings.only]
    with tempfile.TemporaryDirectory(prefix="blocks-") as folder, _Damage(settings, context, Path(folder)) as damage:
        alone = {
            block.output: damage.score(without(model, {block.output: block.skip}), block.name)
            for block in _told(blocks.found, context)
        }
        chosen, together = _greedy(model, blocks.found, alone, damage, most)
    told = tuple(
        ResidualBranch(
            node=block.name,
            parameters=block.parameters,
            damage=_round(alone[block.output]),
            dropped=block.output in chosen,
            reason=damage.failed.get(block.name),
        )
        for block in blocks.found
    )
    if not chosen:
        best = min(blocks.found, key=lambda block: alone[block.output])
        return Refusal(
            code="too_lossy",
            reason=f"Without the cheapest of {len(told)} residual branches, {damage.said(alone[best.output])};"
            f" {damage.limit()} is allowed.",
            node=best.name,
            hint="Allow more, or restore quality afterwards (reconstruct, distill).",
        )
    drop(model, {block.output: block.skip for block in blocks.found if block.output in chosen})
    return Change(
        summary=f"{len(chosen)} of {len(told)} residual branches are gone; on the samples that they were chosen by,"
        f" {damage.said(together)}.",
        details=DropBlocksDetails(
            metric=damage.metric,
            after=_round(together),
            samples=damage.samples,
            blocks=told,
            order=tuple(block.name for output in chosen for block in blocks.found if block.output == output),
            not_considered=left_alone(blocks.refused),
        ),
    )


def _drop_named(model: ir.Model, blocks: Blocks, names: frozenset[str]) -> Change:
    gone = [block for block in blocks.found if block.name in names]
    parameters = {block.name: block.parameters for block in blocks.found}
    drop(model, {block.output: block.skip for block in gone})
    return Change(
        summary=f"{len(gone)} of {len(blocks.found)} residual branches are gone, as the recipe says.",
        details=DropBlocksDetails(
            blocks=tuple(
                ResidualBranch(node=name, parameters=count, dropped=name in names) for name, count in parameters.items()
            ),
            order=tuple(block.name for block in gone),
            not_considered=left_alone(blocks.refused),
        ),
    )


def _told(blocks: list[Block], context: Context) -> Iterator[Block]:
    for number, block in enumerate(blocks):
        context.progress(0.5 * number / len(blocks), f"scored {number} of {len(blocks)} residual branches")
        yield block


def _greedy(
    model: ir.Model, blocks: list[Block], alone: Mapping[str, float], damage: "_Damage", most: int
) -> tuple[dict[str, int], float]:
    """Take the branch of the least damage beside what is gone already, until the limit.

    Damage hardly ever falls when more is gone, so a branch is only scored anew when its last score is the least.
    """
    of = {block.output: block for block in blocks}
    waiting = [(score, 0, output) for output, score in alone.items()]
    heapq.heapify(waiting)
    gone: dict[str, int] = {}
    together = 0.0
    while waiting and len(gone) < most:
        score, after, output = heapq.heappop(waiting)
        if not damage.allows(score):
            break
        if after == len(gone):
            gone[output], together = of[output].skip, score
            continue
        fresh = damage.score(without(model, {**gone, output: of[output].skip}), of[output].name)
        heapq.heappush(waiting, (fresh, len(gone), output))
        damage.context.progress(0.5 + 0.2 * len(gone) / most, f"{len(gone)} of at most {most} branches dropped")
    return gone, together


@dataclass(frozen=True)
class _HeldSession:
    """A session that holds the host lock for one run at a time."""

    session: sessions.Session
    working: Callable[[], AbstractContextManager[None]]

    @property
    def inputs(self) -> Sequence[Port]:
        return self.session.inputs

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        with self.working():
            return self.session.run(feed)


class _Damage:
    """Holds candidates against the original on samples to choose by: by KL where it scores classes, else by noise."""

    def __init__(self, settings: BlockSettings, context: Context, folder: Path) -> None:
        assert context.select is not None
        self.context = context
        self._settings = settings
        self.failed: dict[str, str] = {}
        samples = First(context.select, settings.samples)
        self.samples = len(samples)
        self._path = folder / "network.onnx"
        self._evaluator = Evaluator(
            self._session(context.original),
            samples,
            declared=context.outputs,
            graph=context.original,
            run_bytes=context.run_bytes,
            scratch=folder,
        )
        own = main_metrics(self._evaluator.evaluate(self._session(context.original)))
        self.metric: Literal["kl", "noise_share"] = "kl" if "kl" in own else "noise_share"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._evaluator.close()

    def score(self, model: ir.Model, name: str) -> float:
        """Give the damage, less is better; infinity where the network does not run as the original does."""
        try:
            quality = self._evaluator.evaluate(self._session(model))
        except EngineError as error:
            self.failed[name] = error.message
            return float("inf")
        broken = broken_beside_main(quality)
        if broken is not None:
            self.failed[name] = broken.rstrip(".")
            return float("inf")
        return main_metrics(quality)["kl"].compressed if self.metric == "kl" else noise_share(quality)

    def allows(self, score: float) -> bool:
        """Say whether this much damage is allowed; what does not run never is."""
        limit = self._limit()
        return score < float("inf") and (limit is None or score <= limit)

    def said(self, score: float) -> str:
        """Put a score into words."""
        named = "the KL divergence from the original is" if self.metric == "kl" else "the noise in the outputs is"
        return f"{named} {score:.3g}" + ("" if self.metric == "kl" else " of their energy")

    def limit(self) -> str:
        """Put the limit into words."""
        limit = self._limit()
        return "a network that runs" if limit is None else f"{limit:.3g}"

    def _limit(self) -> float | None:
        if self.metric == "kl":
            return self._settings.max_kl
        least = self._settings.min_sqnr_db
        return None if least is None else float(10 ** (-least / 10))

    def _session(self, model: ir.Model) -> _HeldSession:
        io.save(model, self._path)
        with self.context.working():
            return _HeldSession(sessions.session(self._path, self.context.untimed), self.context.working)


def _skip(node: ir.Node) -> int | None:
    """Say which input of a sum the other one is computed from, or which is only a shortcut from where the other one starts."""
    left, right = node.inputs
    assert left is not None
    assert right is not None
    if left is right:
        return None
    if left in _ancestors(right):
        return 0
    return 1 if right in _ancestors(left) else _projection(left, right)


def _projection(*sides: ir.Value) -> int | None:
    """Say which of two values is a shortcut with a convolution of its own, beside a branch of several layers."""
    left, right = (_ancestors(side) for side in sides)
    shared = left & right
    if not any(not value.is_initializer() for value in shared):
        return None
    paths = [[node.op_type for node in _own(side, shared)] for side in sides]
    found = [
        side
        for side, (path, other) in enumerate(zip(paths, reversed(paths), strict=True))
        if set(path) <= _SHORTCUT
        and path.count("Conv") == 1
        and sum(op in _LAYERS for op in other) > 1
        and _UPWARDS.isdisjoint(other)
    ]
    return found[0] if len(found) == 1 else None


def _own(value: ir.Value, shared: set[ir.Value]) -> set[ir.Node]:
    """Give the nodes that a value is made by, beside what it shares with another one."""
    made = (each.producer() for each in (_ancestors(value) | {value}) - shared)
    return {node for node in made if node is not None}


def _ancestors(value: ir.Value) -> set[ir.Value]:
    found: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        producer = waiting.pop().producer()
        for each in () if producer is None else producer.inputs:
            if each is not None and each not in found:
                found.add(each)
                waiting.append(each)
    return found


def _dead(model: ir.Model, node: ir.Node, skip: int) -> list[ir.Node]:
    """List what nobody needs once the sum is gone."""
    kept, branch = node.inputs[skip], node.inputs[1 - skip]
    assert branch is not None
    ancestors = _ancestors(branch) | {branch}
    gone: set[ir.Node] = set()
    for each in reversed(list(model.graph)):
        if ancestors.isdisjoint(each.outputs) or kept in each.outputs:
            continue
        readers = [use.node for value in each.outputs for use in value.uses()]
        seen = any(value.is_graph_output() for value in each.outputs)
        if not seen and all(reader is node or reader in gone for reader in readers):
            gone.add(each)
    return [each for each in model.graph if each in gone]


def _between(kept: ir.Value, branch: ir.Value) -> set[ir.Node]:
    """Give the nodes that make one value of another."""
    before = _ancestors(branch) | {branch}
    return {node for node in _readers(kept) if not before.isdisjoint(node.outputs)}


def _readers(value: ir.Value) -> set[ir.Node]:
    """Give all nodes that need a value, directly or through others."""
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        for use in waiting.pop().uses():
            if use.node not in found:
                found.add(use.node)
                waiting.extend(use.node.outputs)
    return found


def _weights(nodes: set[ir.Node]) -> int:
    """Count the weights that only these nodes read; scalars are part of a formula, integers of a shape."""
    values = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    return sum(
        value.const_value.size
        for value in values
        if value.const_value is not None
        and value.const_value.size > 1
        and value.const_value.dtype.is_floating_point()
        and all(use.node in nodes for use in value.uses())
    )


def _remove_dead(model: ir.Model) -> None:
    before = {value for node in model.graph for value in node.inputs if value is not None and value.is_initializer()}
    for node in reversed(list(model.graph)):
        if any(value.is_graph_output() or value.uses() for value in node.outputs):
            continue
        model.graph.remove(node, safe=True)
    for value in before:
        if not value.uses() and not value.is_graph_output() and value.name in model.graph.initializers:
            model.graph.initializers.pop(str(value.name))


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if value < float("inf") else None
