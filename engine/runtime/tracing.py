"""What really ran: kernels and their times by onnxruntime's profiler, nodes by provider, the optimised graph."""

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import TargetUnavailableError
from engine.report.run_facts import NodePlacement
from engine.runtime.failures import explain_run
from engine.runtime.kernel_times import NodeRun, read_profile
from engine.runtime.library import run_errors
from engine.runtime.loading import Feed, ModelSource, load, session_options
from engine.runtime.network_files import stored_bytes
from engine.runtime.providers import PROVIDERS
from engine.target import Target

# Models near protobuf's 2 GiB cannot be written with their weights inside.
_LARGE_MODEL_BYTES = 1 << 30
# The first run of a session is none to judge by.
_FEWEST_RUNS = 2


@dataclass(frozen=True)
class Trace:
    """What onnxruntime tells of a session: the kernels of each run, and which provider each node of the network was given to."""

    runs: list[list[NodeRun]]
    nodes: tuple[NodePlacement, ...]


def profile(
    model: ModelSource, target: Target, feeds: Sequence[Feed], runs: int = 1, *, seconds: float = math.inf
) -> list[list[NodeRun]]:
    """Run the network with onnxruntime's profiler; give the nodes of each run. Feeds are taken in turn."""
    return trace(model, target, feeds, runs, seconds=seconds).runs


def trace(
    model: ModelSource, target: Target, feeds: Sequence[Feed], runs: int = 1, *, seconds: float = math.inf
) -> Trace:
    """Run the network with onnxruntime's profiler. Feeds are taken in turn; after `seconds` no further run begins but the second."""
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options = session_options(target, optimise=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "run"))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        opened = load(model, target, options)
        with _explained():
            nodes = _placements(opened._inner)  # noqa: SLF001  # the session is this module's own class
        try:
            ends = time.monotonic() + seconds
            for turn in range(runs):
                if turn >= _FEWEST_RUNS and time.monotonic() > ends:
                    break
                opened.run(feeds[turn % len(feeds)])
        finally:
            with _explained():
                written = Path(opened._inner.end_profiling())  # noqa: SLF001  # the session is this module's own class
        return Trace(read_profile(written), nodes)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except run_errors() as error:
        raise explain_run(error) from error


def _placements(inner: Any) -> tuple[NodePlacement, ...]:
    return tuple(
        NodePlacement(node=node.name, op_type=node.op_type, provider=part.ep_name)
        for part in inner.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def nodes_by_provider(model: ModelSource, target: Target, feed: Feed) -> dict[str, int]:
    """Count the nodes that ran on each provider in one run.

    Raises:
        TargetUnavailableError: none ran on the target's provider.
    """
    return count_nodes(profile(model, target, [feed])[0], target)


def count_nodes(run: Iterable[NodeRun], target: Target) -> dict[str, int]:
    """Count the nodes of one run by provider; raises TargetUnavailableError where none ran on the target's."""
    counts: dict[str, int] = {}
    for node in run:
        counts[node.provider] = counts.get(node.provider, 0) + 1
    wanted = PROVIDERS[target.provider].runtime
    if counts and wanted not in counts:
        raise TargetUnavailableError(
            f"No node of the network ran on {target.provider}: all fell back to {', '.join(sorted(counts))}",
            hint="The provider may not support the network's operators or types.",
        )
    return counts


def optimised_graph(model: ModelSource, target: Target) -> bytes:
    """Give the serialized network that onnxruntime makes of this one and really runs: fused, with layouts chosen.

    Of a network of a gigabyte or more only the structure is given; its large weights refer to a file that is gone.
    Other providers than `cpu` compile what they take and cannot show it.
    """
    if target.provider != "cpu":
        raise TargetUnavailableError(f"The graph that runs on {target.provider} cannot be seen from outside")
    with tempfile.TemporaryDirectory(prefix="optimised-") as folder:
        written = Path(folder, "model.onnx")
        options = session_options(target, optimise=True)
        options.optimized_model_filepath = str(written)
        if _bytes_of(model) >= _LARGE_MODEL_BYTES:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        load(model, target, options)
        return written.read_bytes()


def _bytes_of(model: ModelSource) -> int:
    if isinstance(model, bytes):
        return len(model)

    return stored_bytes(model)
