"""Second moments of a network's layers beside the original's: X'^T X' and X'^T Y, all that closed-form solvers need."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Samples
from engine.graph import io
from engine.graph.dtypes import bodies
from engine.runtime import loading, sessions
from engine.solve.gram import Gram, Moments, Window, patches, positions
from engine.target import Target

# Layers of one row per sample need many; more runs than that take too long.
_MOST_RUNS = 8192
# Without samples to choose by, one run in so many is not fitted to: candidates are judged on it.
_HELD_OUT_EVERY = 5
# Networks are run again after every stage; more stages follow the changed prefix more closely.
STAGES = 16
_STAGE_BYTES = 512 << 20


class Sized(Protocol):
    """A layer of which the size of its sums is known."""

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        ...

    @property
    def inputs(self) -> int:
        """Number of inputs of one output."""
        ...


SizedT = TypeVar("SizedT", bound=Sized)


def in_stages(layers: Sequence[SizedT], stages: int = STAGES) -> Iterator[list[SizedT]]:
    """Yield the layers in about so many runs of neighbours; more where their sums would take more than 512 MiB."""
    most = -(-len(layers) // stages)
    stage: list[SizedT] = []
    size = 0
    for layer in layers:
        need = 2 * 8 * layer.inputs * (layer.inputs + layer.outputs)
        if stage and (len(stage) == most or size + need > _STAGE_BYTES):
            yield stage
            stage, size = [], 0
        stage.append(layer)
        size += need
    if stage:
        yield stage


@dataclass(frozen=True)
class Tap:
    """A layer whose rows are wanted: what it reads, and the weights (outputs, inputs) that make its targets."""

    tensor: str
    weights: npt.NDArray[np.floating[Any]]
    window: Window | None = None  # of a convolution

    @property
    def groups(self) -> int:
        """Give the number of independent problems: those of a grouped convolution."""
        return 1 if self.window is None else self.window.groups

    @property
    def bytes(self) -> int:
        """Give the memory that the sums take."""
        outputs, inputs = self.weights.shape
        return int(2 * self.groups * inputs * (inputs + outputs // self.groups) * 8)


@dataclass(frozen=True)
class Sums:
    """Per group of a layer: what to fit to and what to judge by."""

    fit: Sequence[Moments]
    held_out: Sequence[Moments]


def paired_moments(
    teacher: ir.Model,
    student: ir.Model,
    taps: Mapping[str, Tap],
    samples: Samples,
    target: Target,
    *,
    select: Samples | None = None,
    rows: int = 4096,
    runs: int | None = None,
    progress: Callable[[float], None] = lambda _fraction: None,
    working: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Sums]:
    """Sum X'^T X' and X'^T Y for each layer: X' is its input in `student`, Y = X W^T with X its input in `teacher`.

    Both networks run side by side on the same samples, cut down to what makes the wanted tensors, one sample at a time
    (or as many as the network's batch size fixes), so nothing depends on batching and no layout needs a batch axis first.
    Of each sample as many rows are used as make up about `rows`, or eight per input where that is more. `runs`: no more
    samples than that are looked at, unless they give too few rows; all of them are by default. `working` is held for one
    sample at a time.

    What is fitted is judged by rows of `select`; where there are no such samples, by every fifth of the others.
    """
    names = sorted({tap.tensor for tap in taps.values()})
    fit, held_out = ({key: _gram(tap) for key, tap in taps.items()} for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="moments-") as folder:
        opened = []
        for name, model in (("teacher", teacher), ("student", student)):
            with working():
                opened.append(_open(model, names, Path(folder, f"{name}.onnx"), target))
        pair = _Pair(opened[0], opened[1], fixed_batch(student, samples) or 1, taps, rows, runs, working)
        if select is None:
            pair.add(samples, lambda run: held_out if run % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1 else fit, progress)
        else:
            share = 1 - 1 / _HELD_OUT_EVERY
            pair.add(samples, lambda _run: fit, lambda done: progress(share * done))
            pair.fewer(_HELD_OUT_EVERY).add(
                select, lambda _run: held_out, lambda done: progress(share + (1 - share) * done)
            )
    return {key: _sums(taps[key], fit[key], held_out[key]) for key in taps}


@dataclass(frozen=True)
class _Pair:
    """Both networks, and how many of their rows are wanted."""

    teacher: Any
    student: Any
    size: int
    taps: Mapping[str, Tap]
    rows: int
    runs: int | None
    working: Callable[[], AbstractContextManager[None]]
    # So many times fewer are looked at.
    fraction: int = 1

    def fewer(self, factor: int) -> "_Pair":
        """Give it for samples that are only compared on: so many times fewer rows tell enough."""
        runs = None if self.runs is None else -(-self.runs // factor)
        return replace(self, runs=runs, fraction=factor)

    def add(
        self, samples: Samples, grams: Callable[[int], Mapping[str, Gram]], progress: Callable[[float], None]
    ) -> None:
        """Run the samples through both and add to the sums that `grams` gives for each run."""
        wanted = {key: -(-max(self.rows, 8 * tap.weights.shape[1]) // self.fraction) for key, tap in self.taps.items()}
        total = len(samples) // self.size
        for run, feed in enumerate(samples.batches(self.size)):
            if run >= total:
                break
            with self.working():
                was, now = ({**feed, **session.run(feed)} for session in (self.teacher, self.student))
                if run == 0 and self.runs is not None:
                    fewest = max(-(-wanted[key] // _count(tap, now[tap.tensor])) for key, tap in self.taps.items())
                    total = min(total, max(self.runs, min(fewest, _MOST_RUNS)))
                for key, tap in self.taps.items():
                    if _count(tap, was[tap.tensor]) != _count(tap, now[tap.tensor]):
                        # The data decide how many rows there are, and rows of two networks need not be the same ones.
                        continue
                    x, y = _rows(tap, was[tap.tensor], now[tap.tensor], run, -(-wanted[key] // total))
                    grams(run)[key].update(x, y)
                # The next run's tensors would come on top.
                del was, now
            progress((run + 1) / total)


def cut(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Copy a network down to what makes these tensors, and let them be its outputs."""
    kept = io.copy(model)
    values = {value.name: value for node in kept.graph for value in node.outputs}
    kept.graph.outputs.clear()
    kept.graph.outputs.extend(values[name] for name in tensors if name in values)
    needed: set[ir.Value] = set(kept.graph.outputs)
    for node in reversed(list(kept.graph)):
        if needed.isdisjoint(node.outputs):
            kept.graph.remove(node, safe=False)
            continue
        inner = [value for graph in bodies(node) for part in graph.all_nodes() for value in part.inputs]
        inner += [value for graph in bodies(node) for value in graph.outputs]
        needed.update(value for value in (*node.inputs, *inner) if value is not None)
    for name, value in list(kept.graph.initializers.items()):
        if value not in needed:
            kept.graph.initializers.pop(name)
    return kept


def _open(model: ir.Model, tensors: Sequence[str], path: Path, target: Target) -> Any:
    part = cut(model, tensors)
    if not part.graph.outputs:
        return _Nothing()
    io.save(part, path)
    return sessions.session(path, target)


class _Nothing:
    """Stands for a network of which only inputs are wanted."""

    def run(self, feed: loading.Feed) -> dict[str, Any]:
        del feed
        return {}


def _gram(tap: Tap) -> Gram:
    outputs, inputs = tap.weights.shape
    return Gram(inputs, outputs // tap.groups, groups=tap.groups, block=256)


def _count(tap: Tap, now: Any) -> int:
    """Give how many rows one run has."""
    rows = (
        now.size // now.shape[-1] if tap.window is None else len(now) * int(np.prod(tap.window.outputs(now.shape[2:])))
    )
    return max(1, int(rows))


def _rows(tap: Tap, was: Any, now: Any, run: int, keep: int) -> tuple[Any, Any]:
    if tap.window is None:
        x, target = now.reshape(-1, now.shape[-1]), was.reshape(-1, was.shape[-1])
        chosen = positions(run, 1, len(x), keep)[0]
        return x[chosen], target[chosen] @ tap.weights.T.astype(np.float32)
    sizes = now.shape[2:]
    places = int(np.prod(tap.window.outputs(sizes)))
    count = len(now)
    chosen = positions(run * count, count, places, -(-keep // count))
    target = patches(was, tap.window, chosen)
    weights = tap.weights.reshape(tap.groups, -1, tap.weights.shape[1]).astype(np.float32)
    return patches(now, tap.window, chosen), target @ weights.transpose(0, 2, 1)


def _sums(tap: Tap, fit: Gram, held_out: Gram) -> Sums:
    fitted = [fit.moments(group) for group in range(tap.groups)]
    judged = [held_out.moments(group) for group in range(tap.groups)] if held_out.rows else fitted
    return Sums(fitted, judged)
