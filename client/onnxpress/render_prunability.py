"""What of a network could be pruned, as tables for a terminal."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from onnxpress import wording
from onnxpress.documents import Prunability
from onnxpress.terminal_text import safe_text

_MOST_GROUPS = 20
_MOST_REASONS = 10


def show_prunability(found: Prunability, console: Console) -> None:
    """Print shares, the largest groups, and why nodes keep their channels."""
    console.print(
        safe_text(
            f"{wording.share(found.prunable_parameters)} of {found.parameters:,} parameters and {wording.share(found.prunable_macs)} of"
            f" {found.macs:,} multiply-accumulates lie in groups of channels that can go."
        )
    )
    if found.groups:
        console.print(_groups(found))
    if found.frozen:
        console.print(_frozen(found))


def _groups(found: Prunability) -> Table:
    table = Table("group", "kind", "channels", "weights that lose a part")
    for group in found.groups[:_MOST_GROUPS]:
        names = list(dict.fromkeys(str(member["initializer"]) for member in group.members))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        table.add_row(
            safe_text(group.name),
            safe_text(group.kind),
            str(group.channels),
            safe_text(f"{', '.join(names[:3])}{more}"),
        )
    if (left := found.document["groups_total"] - _MOST_GROUPS) > 0:
        table.caption = f"and {left} smaller groups"
    return table


def _frozen(found: Prunability) -> Table:
    """Give the reasons, the one that keeps the most first, each with a node for example."""
    kept: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for item in found.frozen:
        kept[item.reason] += item.channels
        examples.setdefault(item.reason, []).append(f"{item.op} {item.node}")
    table = Table("keeps", "nodes", "why")
    for reason, _ in kept.most_common(_MOST_REASONS):
        nodes = examples[reason]
        table.add_row(safe_text(nodes[0]), str(len(nodes)), safe_text(reason))
    return table
