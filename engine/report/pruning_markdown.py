"""What the passes say that make a network thinner, as Markdown."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.report.detail_parts import Detail, LeftAlone
from engine.report.pruning_details import (
    ChannelGroup,
    DropBlocksDetails,
    FactoriseDetails,
    FactorisedLayer,
    PruneChannelsDetails,
    PruneWeightsDetails,
    ReconstructDetails,
    RefittedLayer,
    ResidualBranch,
    SparseLayer,
    TriedImportance,
)
from engine.report.wording import share, table

# Most groups and refitted layers are like their neighbours.
_MOST_LINES = 64


def pruning_lines(details: Detail, step: int) -> Iterator[str]:
    """Give tables of what became of groups, layers and branches; nothing for the details of other passes."""
    match details:
        case PruneChannelsDetails():
            yield from _table(f"Channels of step {step}", _GROUPS, details.groups)
            yield from _table(f"What decided which channels of step {step} went", _IMPORTANCES, details.importances)
            yield from _table(f"Layers that step {step} refitted", _REFITTED, _fitted(details.layers))
        case ReconstructDetails():
            yield from _table(f"Layers of step {step}", _REFITTED, _fitted(details.layers))
        case PruneWeightsDetails():
            yield from _table(f"Layers of step {step}", _SPARSE, details.layers)
            yield from _kept(details.left_alone)
        case FactoriseDetails():
            yield from _table(f"Layers of step {step}", _FACTORISED, details.layers)
            yield from _kept(details.left_alone)
        case DropBlocksDetails():
            yield from _table(f"Residual branches of step {step}", _BRANCHES[details.metric], details.blocks)
            yield from _kept(details.not_considered)


def _fitted(layers: Sequence[RefittedLayer]) -> list[RefittedLayer]:
    return [layer for layer in layers if layer.error_after is not None]


def _table(title: str, columns: Sequence[tuple[str, Callable[[Any], str]]], rows: Sequence[Detail]) -> Iterator[str]:
    if not rows:
        return
    yield from ("", f"### {title}", "")
    yield from table(
        [name for name, _ in columns], (tuple(show(row) for _, show in columns) for row in rows[:_MOST_LINES])
    )
    if len(rows) > _MOST_LINES:
        yield from ("", f"And {len(rows) - _MOST_LINES} more, in report.json.")


def _kept(nodes: Sequence[LeftAlone]) -> Iterator[str]:
    for left in nodes:
        yield from ("", f"`{left.node}` stays as it is: {left.reason}.")


def _errors(layer: SparseLayer | FactorisedLayer) -> str:
    return ", ".join(f"{method} {error:.2g}" for method, error in (layer.held_out_error or {}).items())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _producers(group: ChannelGroup) -> str:
    return ", ".join(group.producers[:3]) + (", …" if len(group.producers) > 3 else "")


def _time(layer: FactorisedLayer) -> str:
    return "" if layer.time_of_network is None else f"{layer.time_of_network:.3f}"


def _fate(branch: ResidualBranch) -> str:
    return "dropped" if branch.dropped else branch.reason or "kept"


_GROUPS: tuple[tuple[str, Callable[[ChannelGroup], str]], ...] = (
    ("made by", _producers),
    ("kind", lambda group: group.kind),
    ("channels", lambda group: str(group.channels)),
    ("kept", lambda group: str(group.kept)),
)
_IMPORTANCES: tuple[tuple[str, Callable[[TriedImportance], str]], ...] = (
    ("importance", lambda tried: tried.importance),
    ("loses", lambda tried: _share(tried.drop)),
    ("multiply-accumulates", lambda tried: "" if tried.macs_after is None else f"{tried.macs_after:,}"),
    ("", lambda tried: "chosen" if tried.chosen else tried.why_not or ""),
)
_REFITTED: tuple[tuple[str, Callable[[RefittedLayer], str]], ...] = (
    ("layer", lambda layer: layer.node),
    ("operator", lambda layer: layer.op),
    ("held-out error before", lambda layer: _share(layer.error_before)),
    ("after", lambda layer: _share(layer.error_after)),
    ("", lambda layer: "refitted" if layer.taken else "as it was"),
)
_SPARSE: tuple[tuple[str, Callable[[SparseLayer], str]], ...] = (
    ("layer", lambda layer: layer.node),
    ("operator", lambda layer: layer.op),
    ("zeros", lambda layer: share(layer.zeros)),
    ("method", lambda layer: layer.method),
    ("held-out error", _errors),
)
_FACTORISED: tuple[tuple[str, Callable[[FactorisedLayer], str]], ...] = (
    ("layer", lambda layer: layer.node),
    ("operator", lambda layer: layer.op),
    ("ranks", lambda layer: ", ".join(map(str, layer.ranks))),
    ("multiplications left", lambda layer: share(layer.multiplications)),
    ("time of a run", _time),
    ("method", lambda layer: layer.method),
    ("held-out error", _errors),
)
_BRANCHES: dict[str | None, tuple[tuple[str, Callable[[ResidualBranch], str]], ...]] = {
    metric: (
        ("branch", lambda branch: branch.node),
        ("weights", lambda branch: str(branch.parameters)),
        (title, lambda branch: _share(branch.damage)),
        ("", _fate),
    )
    for metric, title in (
        ("kl", "KL divergence without it (nats)"),
        ("noise_share", "noise without it"),
        (None, "damage"),
    )
}
