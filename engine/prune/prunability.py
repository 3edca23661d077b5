"""What of a network could be pruned: shares, groups, and which nodes keep what and why."""

from collections import Counter
from pathlib import Path

from engine.graph import io
from engine.graph.coupling import analyse
from engine.graph.groups import Group
from engine.inspection import FrozenNode, Prunability, PrunableGroup, PrunableMember

# Of groups and of frozen nodes, the largest ones are listed; of a group, the first members.
_MOST_LISTED = 256
_MOST_MEMBERS = 32
_MOST_PRODUCERS = 8
# Names are the network's, and as long as its maker liked.
_LONGEST_NAME = 200


def prunability(path: Path) -> Prunability:
    """Analyse the network in an untrusted file; call it in a sandbox. Multiply-accumulates are counted at batch 1."""
    coupling = analyse(io.load(path))
    groups = sorted(coupling.groups, key=lambda group: -len(group.atoms))
    frozen = sorted(coupling.frozen, key=lambda item: -item.channels)
    return Prunability(
        prunable_parameters=round(coupling.prunable_parameters, 4),
        prunable_macs=round(coupling.prunable_macs, 4),
        parameters=coupling.parameters,
        macs=sum(coupling.macs.values()),
        kinds=dict(sorted(Counter(group.kind for group in groups).items())),
        groups=tuple(map(_group, groups[:_MOST_LISTED])),
        groups_total=len(groups),
        frozen=tuple(
            FrozenNode(node=_cut(item.node), op=_cut(item.op_type), reason=_cut(item.reason), channels=item.channels)
            for item in frozen[:_MOST_LISTED]
        ),
        frozen_total=len(frozen),
    )


def _group(group: Group) -> PrunableGroup:
    return PrunableGroup(
        name=_cut(group.name),
        kind=group.kind,
        channels=len(group.atoms),
        lossy=group.lossy,
        producers=tuple(map(_cut, group.producers[:_MOST_PRODUCERS])),
        members=tuple(
            PrunableMember(
                node=_cut(part.node), initializer=_cut(part.initializer), axis=part.axis, width=part.atoms.shape[-1]
            )
            for part in group.slices[:_MOST_MEMBERS]
        ),
        members_total=len(group.slices),
    )


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
