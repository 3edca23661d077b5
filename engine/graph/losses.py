"""What a choice of channels costs each axis: whether it may go at all, and which places of which tensors go with it."""

from collections.abc import Iterable

import numpy as np

from engine.errors import SpecInvalidError
from engine.graph.coupling import Coupling
from engine.graph.execution import Member, Site
from engine.graph.labels import Array, Labels


def removed(coupling: Coupling, atoms: Iterable[int]) -> Array:
    """Check that atoms may go together, and give them as a mask over atom numbers."""
    chosen = set(atoms)
    known = [atom for group in coupling.groups for atom in group.atoms]
    unknown = chosen.difference(known)
    if unknown:
        raise SpecInvalidError(f"Channels {sorted(unknown)[:5]} cannot be removed.")
    for group in coupling.groups:
        inside = np.array([atom in chosen for atom in group.atoms])
        if inside.any() and (group.balance @ inside.astype(np.int64)).any():
            raise SpecInvalidError(
                f"Removing these channels of group {group.name} would leave lines of unequal length.",
                node=group.producers[0],
                hint="Remove whole units as `units` lists them.",
            )
    labels = [
        *(member.labels for member in coupling.members),
        *(site.labels for site in coupling.sites),
        *(sink.labels for sink in coupling.sinks),
    ]
    gone = np.zeros(1 + max([*known, *(int(part.atoms.max()) for part in labels)], default=0), bool)
    gone[list(chosen)] = True
    return gone


def by_initializer(coupling: Coupling, gone: Array) -> dict[str, list[Member]]:
    """List the members that lose something, by initializer."""
    found: dict[str, list[Member]] = {}
    for member in coupling.members:
        if gone[member.labels.atoms].any():
            found.setdefault(member.initializer, []).append(member)
    return found


def losses_by_axis(labels: Iterable[Labels], gone: Array) -> dict[int, Array]:
    """Give for each axis that gets shorter which places go; labels of several layers are joined."""
    found: dict[int, Array] = {}
    for part in labels:
        loss = gone[part.atoms]
        if loss.any():
            found[part.axis] = found[part.axis] | loss if part.axis in found else loss
    return {axis: _even(loss, axis) for axis, loss in found.items()}


def _even(loss: Array, axis: int) -> Array:
    """Drop axes along which the loss is the same everywhere."""
    for other, size in enumerate(loss.shape):
        if other != axis and size > 1 and (loss == loss.take([0], axis=other)).all():
            loss = loss.take([0], axis=other)
    return loss


def first_line(loss: Array, axis: int) -> Array:
    """Give the loss on the first line; the analysis made sure that the others count as many in every range."""
    line: Array = np.moveaxis(loss, axis, -1).reshape(-1, loss.shape[axis])[0]
    return line


def new_sizes(sites: list[Site], gone: Array) -> dict[int, int]:
    """Give the new length of each axis that gets shorter."""
    shape = sites[0].labels.shape
    found = {}
    for axis, loss in losses_by_axis([site.labels for site in sites], gone).items():
        left = shape[axis] - int(first_line(loss, axis).sum())
        if left == 0:
            raise SpecInvalidError(
                "An axis would have width 0.", node=sites[0].node, hint="Keep at least one unit of each group."
            )
        found[axis] = left
    return found
