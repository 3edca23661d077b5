"""What of a network can change, read from its graph: groups of channels, residual branches, layers, with their sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from engine.goal import Space
from engine.graph import io, linear, macs
from engine.graph.attributes import integers
from engine.graph.coupling import Coupling, analyse
from engine.graph.groups import Group
from engine.graph.linear import LinearLayer
from engine.prune.blocks import find_blocks
from engine.prune.low_rank import splittable
from engine.prune.ranks import RANK_STEP, by_cost, by_rank, channels_at
from engine.prune.widths import Cuts, kernel_step, names_of
from engine.target import Target

# What the residual stream of a transformer and the insides of heads carry is missed everywhere at once.
KINDS = ("channels", "ffn", "heads", "recurrent")
# Thin layers that take more of a layer's multiplications than this do not pay.
BREAK_EVEN = 0.7


@dataclass(frozen=True)
class WidthGroup:
    """Channels, heads or neurons that are alternatives to each other, under a name that holds while a network is cut."""

    name: str
    kind: str
    size: int
    # How many may stay, the most first; the first is all of them.
    widths: tuple[int, ...]
    # Any of these is possible, though kernels may not like it.
    cuts: Cuts
    # Layers that make its channels.
    producers: tuple[str, ...]

    @property
    def named_after(self) -> str:
        """The layer in its name."""
        return self.name.partition(":")[2].partition("#")[0]

    def nearest(self, share: float) -> int:
        """Give the allowed width nearest to a share of its size; of two the larger."""
        return min(self.widths, key=lambda width: (abs(width - share * self.size), -width))


@dataclass(frozen=True)
class Branch:
    """A residual branch that may go, named by the sum that it enters."""

    name: str
    # Nodes that nobody needs without it.
    nodes: frozenset[str] = field(repr=False)
    parameters: int


@dataclass(frozen=True)
class Side:
    """What a layer reads, or makes: so many channels, of which some belong to groups, as places per unit of the group."""

    size: int
    parts: tuple[tuple[str, float], ...] = ()

    def width(self, kept: Mapping[str, tuple[int, int]]) -> int:
        """Give how many are left, by how many of how many each group keeps."""
        gone = sum(places * (kept[name][1] - kept[name][0]) for name, places in self.parts if name in kept)
        return max(1, self.size - round(gone))


@dataclass(frozen=True)
class Layer:
    """A layer with weights of its own: a convolution or a product with a matrix."""

    name: str
    op: str
    reads: Side
    makes: Side
    # Of a convolution: kernel, strides; its channels may be in groups, and in one each of a depthwise one.
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    depthwise: bool
    # Of the layer as it is, at batch 1.
    macs: int
    weights: int
    # What it may be split to, the highest first; empty: it stays whole.
    ranks: tuple[int, ...]

    def full_rank(self, reads: int, makes: int) -> int:
        """Give the rank that says nothing at such widths: of a kernel on the side of its outputs."""
        return makes if int(np.prod(self.kernel or (1,))) > 1 else min(reads, makes)

    def split_share(self, rank: int, reads: int, makes: int) -> float:
        """Give the multiplications of the thin layers at such a rank and such widths, as a share of the whole layer's."""
        places = int(np.prod(self.kernel)) if self.kernel else 1
        if places == 1:
            return rank * (reads + makes) / (reads * makes)
        channels = channels_at(rank, reads, makes, RANK_STEP)
        first = reads * channels * int(np.prod(self.strides or (1,)))
        return (first + channels * rank * places + rank * makes) / (reads * places * makes)


@dataclass(frozen=True)
class Anatomy:
    """All of it, in the graph's order."""

    groups: tuple[WidthGroup, ...]
    branches: tuple[Branch, ...]
    layers: tuple[Layer, ...]
    # Of the whole network at batch 1, those of no layer included.
    macs: int
    parameters: int


def read(model: ir.Model, space: Space, target: Target) -> Anatomy:
    """Read a simplified network; it stays as it is."""
    model = io.copy(model)
    blocks = find_blocks(model).found
    excluded = frozenset(space.exclude)
    branches = [
        Branch(block.name, frozenset(linear.node_name(node) for node in block.nodes), block.parameters)
        for block in blocks
    ]
    coupling = analyse(model)
    may_go = frozenset[str]().union(*(branch.nodes for branch in branches))
    named = {
        _lasting(group, names, may_go): group
        for group, names in names_of(coupling.groups)
        if group.kind in KINDS and not excluded & {*group.producers, *(part.node for part in group.slices)}
    }
    groups = tuple(
        each for name, group in named.items() if (each := _group(name, group, coupling, space, target)) is not None
    )
    known = {group.name: named[group.name] for group in groups}
    return Anatomy(
        groups,
        tuple(each for each in branches if space.drop_blocks and not excluded & {each.name, *each.nodes}),
        tuple(_layers(model, known, space, excluded)),
        macs=sum(coupling.macs.values()),
        parameters=coupling.parameters,
    )


def _lasting(group: Group, names: Sequence[str], may_go: frozenset[str]) -> str:
    """Choose the name by a layer that stays, whichever branches go, where there is one."""
    return next(
        (name for name, layer in zip(names, dict.fromkeys(group.producers), strict=True) if layer not in may_go),
        names[0],
    )


def _group(name: str, group: Group, coupling: Coupling, space: Space, target: Target) -> WidthGroup | None:
    cuts = Cuts.of(coupling, group)
    step = kernel_step(group.kind, target)
    widths = sorted({cuts.size, *(cuts.rounded(share, step) for share in space.widths)}, reverse=True)
    if len(widths) < 2:
        return None
    return WidthGroup(name, group.kind, cuts.size, tuple(widths), cuts, tuple(dict.fromkeys(group.producers)))


def _layers(model: ir.Model, groups: Mapping[str, Group], space: Space, excluded: frozenset[str]) -> list[Layer]:
    work, thin = macs.count(model), splittable(model) if space.ranks else frozenset()
    found = []
    for node in model.graph:
        layer = linear.read(node)
        if not isinstance(layer, LinearLayer):
            continue
        made, read_from = _sides(layer, groups)
        found.append(
            Layer(
                name=layer.name,
                op=node.op_type,
                reads=read_from,
                makes=made,
                kernel=layer.shape[2:] if layer.is_convolution else (),
                strides=tuple(integers(node, "strides") or ()) or (1,) * len(layer.shape[2:]),
                groups=layer.groups,
                depthwise=layer.groups > 1 and layer.groups == _channels(layer),
                macs=work.get(str(node.name), 0),
                weights=layer.tensor.size,
                ranks=_ranks(layer, space.ranks) if layer.name in thin - excluded else (),
            )
        )
    return found


def _channels(layer: LinearLayer) -> int:
    """Give how many channels a layer reads."""
    if not layer.is_convolution:
        return layer.inputs
    return layer.shape[0] if layer.node.op_type == "ConvTranspose" else layer.shape[1] * layer.groups


def _sides(layer: LinearLayer, groups: Mapping[str, Group]) -> tuple[Side, Side]:
    """Give what a layer makes and what it reads."""
    weight, out = str(layer.weight.name), layer.axis
    makes = Side(layer.outputs, _parts(groups, weight, out))
    reads = Side(_channels(layer), _parts(groups, weight, 1 - out, each=layer.groups))
    if layer.groups > 1 and not reads.parts:
        # The channels of a group of a convolution go with what the group makes.
        ratio = reads.size / makes.size
        reads = Side(reads.size, tuple((name, places * ratio) for name, places in makes.parts))
    return makes, reads


def _parts(groups: Mapping[str, Group], weight: str, axis: int, each: int = 1) -> tuple[tuple[str, float], ...]:
    """Say how many places of an axis of a weight each unit of each group has there."""
    found = []
    for name, group in groups.items():
        atoms = np.array(group.atoms)
        for part in group.slices:
            if part.initializer == weight and part.axis == axis:
                places = np.isin(part.atoms, atoms).sum() / (len(part.atoms) if part.atoms.ndim > 1 else 1)
                if places:
                    found.append((name, float(places) * (each if part.atoms.ndim > 1 else 1) / len(atoms)))
                break
    return tuple(found)


def _ranks(layer: LinearLayer, shares: Sequence[float]) -> tuple[int, ...]:
    found = {by_cost(layer, share, RANK_STEP).ranks[0] for share in shares}
    return tuple(sorted((rank for rank in found if by_rank(layer, rank, RANK_STEP).cost <= BREAK_EVEN), reverse=True))
