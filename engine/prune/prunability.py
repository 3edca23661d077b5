"""What of a network could be pruned: shares, groups, and which nodes keep what and why."""

from collections import Counter
from pathlib import Path
from typing import Any

from engine.graph import io
from engine.graph.coupling import analyse

# Of groups and of frozen nodes, the largest ones are listed.
_MOST_LISTED = 256


def prunability(path: Path) -> dict[str, Any]:
    """Analyse the network in an untrusted file; call it in a sandbox. Multiply-accumulates are counted at batch 1."""
    coupling = analyse(io.load(path))
    groups = sorted(coupling.groups, key=lambda group: -len(group.atoms))
    frozen = sorted(coupling.frozen, key=lambda item: -item.channels)
    return {
        "prunable_parameters": round(coupling.prunable_parameters, 4),
        "prunable_macs": round(coupling.prunable_macs, 4),
        "parameters": coupling.parameters,
        "macs": sum(coupling.macs.values()),
        "kinds": dict(sorted(Counter(group.kind for group in groups).items())),
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "channels": len(group.atoms),
                "lossy": group.lossy,
                "producers": list(group.producers[:8]),
            }
            for group in groups[:_MOST_LISTED]
        ],
        "groups_total": len(groups),
        "frozen": [
            {"node": item.node, "op": item.op_type, "reason": item.reason, "channels": item.channels}
            for item in frozen[:_MOST_LISTED]
        ],
        "frozen_total": len(frozen),
    }
