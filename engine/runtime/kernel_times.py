"""Reads onnxruntime's profile, and adds up where a network's time goes."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine.report.run_facts import OpCost

# Their time is that of the nodes inside them, which are listed too.
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class NodeRun:
    """One execution of one node."""

    op_type: str
    node: str
    provider: str
    microseconds: float
    # Of activations that it read and wrote.
    bytes: int = 0


Run = list[NodeRun]


@dataclass(frozen=True)
class OpProfile:
    """Where the time of a network goes, most expensive first."""

    by_type: tuple[OpCost, ...]
    by_node: tuple[OpCost, ...]
    nodes_by_provider: dict[str, int]


def read_profile(path: Path) -> list[list[NodeRun]]:
    """Give the nodes of each run from a profile file."""
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == "model_run")
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return [[_node(event) for event in nodes if start <= event["ts"] <= end] for start, end in runs]


def summarise(runs: Sequence[Sequence[NodeRun]]) -> OpProfile:
    """Add up the runs: by operator type and by node, the median over the runs."""
    last = runs[-1]
    providers: dict[str, int] = defaultdict(int)
    for node in last:
        providers[node.provider] += 1
    by_type = _costs(runs, lambda node: (node.op_type, None, node.provider))
    by_node = _costs(runs, lambda node: (node.op_type, node.node, node.provider))
    return OpProfile(by_type, by_node, dict(providers))


_Key = tuple[str, str | None, str]


def _costs(runs: Sequence[Sequence[NodeRun]], key: Callable[[NodeRun], _Key]) -> tuple[OpCost, ...]:
    sums: dict[_Key, list[float]] = {}
    counts: dict[_Key, int] = {}
    for turn, run in enumerate(runs):
        counts = defaultdict(int)
        for node in _without_control_flow(run):
            sums.setdefault(key(node), [0.0] * len(runs))[turn] += node.microseconds / 1e3
            counts[key(node)] += 1
    typical = {which: median(values) for which, values in sums.items()}
    total = sum(typical.values())
    found = [
        OpCost(
            op_type=op_type,
            node=node,
            provider=provider,
            count=counts.get((op_type, node, provider), 0),
            ms=ms,
            share=ms / total if total else 0.0,
        )
        for (op_type, node, provider), ms in typical.items()
    ]
    return tuple(sorted(found, key=lambda cost: -cost.ms))


def _without_control_flow(run: Iterable[NodeRun]) -> Iterable[NodeRun]:
    return (node for node in run if node.op_type not in _CONTROL_FLOW)


def _node(event: dict[str, Any]) -> NodeRun:
    arguments = event["args"]
    return NodeRun(
        op_type=arguments.get("op_name", ""),
        node=event["name"].removesuffix("_kernel_time"),
        provider=arguments.get("provider", ""),
        microseconds=float(event["dur"]),
        bytes=sum(int(arguments.get(name) or 0) for name in ("activation_size", "output_size")),
    )
