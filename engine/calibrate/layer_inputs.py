"""The rows that layers read, summed up stage by stage while layers change: for solvers that round weights one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.calibrate.staged import Pair, Side, Tensors, plan
from engine.contract import Samples
from engine.data.batches import sample_count
from engine.data.padding import valid_positions
from engine.graph import io
from engine.runtime.processor import threads
from engine.solve.gram import Window, patches, positions
from engine.solve.input_sums import Inputs, InputSums
from engine.target import Target

# Rows that a layer's sums are made of, and that many for each of its inputs where that is more.
_ROWS = 4096
_ROWS_PER_INPUT = 4
# Candidates are judged on so many times fewer, and on no more than that, which is enough to compare them.
_HELD_OUT_EVERY, _MOST_JUDGED = 5, 2048
# Runs of the networks from which all layers get their rows; a layer of few rows in a run looks at more.
_FEWEST_RUNS, _MOST_RUNS = 64, 256
_MOST_RUNS_OF_ONE = 8192
# What is kept between two stages, of each network; fewer runs than fit into it are kept where one run has much, but a few are.
_KEPT_BYTES, _LEAST_RUNS = 1 << 30, 8
_STAGE_BYTES = 512 << 20
# Below so many outputs for each input, targets are less work than products of inputs.
_NARROW = 0.75
# Runs whose padding says how much of the others is padding.
_LOOKED_AT = 32

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Site:
    """A layer whose inputs are wanted. `key` tells it from others, `window` is a convolution's, `weights` are read late."""

    key: str
    node: ir.Node
    source: str
    inputs: int
    outputs: int
    window: Window | None
    weights: Callable[[], Array]  # (outputs, inputs)

    @property
    def groups(self) -> int:
        """Give the number of independent problems: those of a grouped convolution."""
        return 1 if self.window is None else self.window.groups

    @property
    def reads(self) -> tuple[str, Window | None]:
        """Give what layers that share their inputs have in common."""
        return self.source, self.window

    @property
    def bytes(self) -> int:
        """Give the memory that its sums and their blocks take."""
        return self.groups * (8 * self.inputs**2 + 16384 * self.inputs)


class LayerInputs:
    """Walks through a network in stages of layers; each stage is read with all layers before it as they are by then.

    Both networks, the original and the one that changes, run once over the samples in all: what a stage starts from is
    kept. Samples are fed one at a time (or as many as the network fixes), so nothing depends on batching and no layout
    needs a batch axis first. Positions that a mask among the inputs calls padding are left out. `working` is held for one
    run of both at a time. What is fitted is judged by rows of `select`; where there are no such samples, by every fifth run.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        samples: Samples,
        target: Target,
        *,
        select: Samples | None,
        working: Callable[[], AbstractContextManager[None]],
        folder: Path,
    ) -> None:
        self._student = model
        self._teacher = io.copy(model)
        self._samples = samples
        self._select = select
        self._target = target
        self._working = working
        self._folder = folder
        self._size = fixed_batch(model, samples) or 1
        self.stages, self._kept = plan(model, sites, _STAGE_BYTES)

    def __iter__(self) -> Iterator[tuple[list[Site], dict[str, list[Inputs]]]]:
        """Give each stage's layers, and by key the inputs of each: one for each group of a convolution.

        The caller changes the layers in the model before it asks for the next stage.
        """
        counts, largest = self._look()
        most = max((self._runs_for(site, counts) for stage in self.stages for site in stage), default=0)
        runs = min(max(most, _FEWEST_RUNS), _MOST_RUNS, max(_LEAST_RUNS, _KEPT_BYTES // max(largest, 1)))
        pair = self._pair(self._kept, runs)
        try:
            for number, stage in enumerate(self.stages):
                more = max(self._runs_for(site, counts) for site in stage)
                alone = more > runs < self._available(self._samples)
                sums = _StageSums(stage, self._size, self._parts(runs))
                pair.stage(number, (lambda *_: None) if alone else sums.add)
                if alone:
                    more = min(more, _MOST_RUNS_OF_ONE)
                    sums = _StageSums(stage, self._size, self._parts(more))
                    # From the inputs of the networks on: what a stage starts from is kept for fewer runs.
                    whole = self._pair([sorted({site.source for site in stage})], more)
                    whole.stage(0, sums.add)
                    whole.end()
                with self._working():
                    found = sums.results()
                yield stage, found
        finally:
            pair.end()

    def _pair(self, kept: Sequence[Sequence[str]], runs: int) -> Pair:
        teacher, student = (self._side(each, kept) for each in (self._teacher, self._student))
        return Pair(teacher, student, lambda: self._feeds(runs), self._working)

    def _side(self, model: ir.Model, kept: Sequence[Sequence[str]]) -> Side:
        return Side(model, kept, self._target, threads=threads(), folder=self._folder)

    def _parts(self, runs: int) -> "_Parts":
        fit = min(runs, self._available(self._samples))
        judged = 0 if self._select is None else min(-(-fit // _HELD_OUT_EVERY), self._available(self._select))
        return _Parts(fit, judged)

    def _feeds(self, runs: int) -> Iterator[Tensors]:
        parts = self._parts(runs)
        given = islice(self._samples.batches(self._size), parts.fit)
        return given if self._select is None else chain(given, islice(self._select.batches(self._size), parts.judged))

    def _available(self, samples: Samples) -> int:
        return len(samples) // self._size

    def _runs_for(self, site: Site, counts: Mapping[str, int]) -> int:
        return -(-_rows_wanted(site) // counts[site.key])

    def _look(self) -> tuple[dict[str, int], int]:
        """Run the original network once: how many rows a run has for each layer, and the most bytes that a stage keeps of it."""
        side = self._side(self._teacher, self._kept)
        feeds = list(islice(self._samples.batches(self._size), _LOOKED_AT))
        feed, valid = feeds[0], [valid_positions(each, self._size) for each in feeds]
        counts: dict[str, int] = {}
        largest = 0
        for number, stage in enumerate(self.stages):
            side.begin(number)
            with self._working():
                tensors = side.run(0, feed)
            largest = max(largest, sum(array.nbytes for array in tensors.values()))
            counts.update({site.key: _count(site, tensors[site.source], valid) for site in stage})
        side.end()
        return counts, largest


@dataclass(frozen=True)
class _Parts:
    """Runs that are fitted to, and those after them that are judged on; 0: every fifth of the others."""

    fit: int
    judged: int

    def is_judged(self, run: int) -> bool:
        return run >= self.fit if self.judged else run % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


class _StageSums:
    """The sums of a stage's layers; those that read the same have the same ones."""

    def __init__(self, stage: Sequence[Site], size: int, parts: _Parts) -> None:
        self._stage = stage
        self._size = size
        self._parts = parts
        self._sites = {site.reads: site for site in stage}
        self._sums = {reads: self._new(site) for reads, site in self._sites.items()}

    def _new(self, site: Site) -> list[InputSums]:
        alone = sum(each.reads == site.reads for each in self._stage) == 1
        if alone and site.groups == 1 and site.outputs <= _NARROW * site.inputs:
            return [InputSums(site.inputs, site.weights(), threads=threads())]
        return [InputSums(site.inputs, threads=threads()) for _ in range(site.groups)]

    def add(self, run: int, feed: Tensors, was: Tensors, now: Tensors) -> None:
        valid = valid_positions(feed, sample_count(feed))
        for reads, site in self._sites.items():
            pair = [_rows(site, side[site.source], run, self._keep(site), valid) for side in (now, was)]
            if pair[0].shape != pair[1].shape:
                # The data decide how many rows there are, and rows of two networks need not be the same ones.
                continue
            judged = self._parts.is_judged(run)
            both = self._parts.fit < _HELD_OUT_EVERY and not self._parts.judged
            for sums, x, original in zip(self._sums[reads], *pair, strict=True):
                if (judged or both) and sums.held_out < _MOST_JUDGED:
                    sums.hold_out(x, original)
                if not judged:
                    sums.update(x, original)

    def results(self) -> dict[str, list[Inputs]]:
        found = {reads: [sums.result() for sums in groups] for reads, groups in self._sums.items()}
        return {site.key: found[site.reads] for site in self._stage}

    def _keep(self, site: Site) -> int:
        """Give the rows that are taken of one run."""
        return -(-_rows_wanted(site) // max(self._parts.fit, 1))


def _rows_wanted(site: Site) -> int:
    return max(_ROWS, _ROWS_PER_INPUT * site.inputs)


def _count(site: Site, array: Array, valid: Sequence[Array | None]) -> int:
    """Give the rows of a run: `array` is what the layer reads in the first one, `valid` says for some what is no padding."""
    if site.window is None:
        shares = [each.mean() for each in valid if each is not None and each.shape == array.shape[:-1]]
        return max(1, int(array.size // max(array.shape[-1], 1) * (np.mean(shares) if shares else 1)))
    return max(1, len(array) * int(np.prod(site.window.outputs(array.shape[2:]))))


def _rows(site: Site, array: Array, run: int, keep: int, valid: Array | None) -> Array:
    """Give some of the rows that a layer multiplies with its weights in a run: (groups, rows, inputs)."""
    if site.window is None:
        rows = array.reshape(-1, array.shape[-1])
        if valid is not None and array.shape[:-1] == valid.shape and valid.any():
            rows = rows[valid.reshape(-1)]
        taken: Array = rows[positions(run, 1, len(rows), keep)[0]]
        return taken[None]
    places = int(np.prod(site.window.outputs(array.shape[2:])))
    chosen = positions(run * len(array), len(array), places, -(-keep // len(array)))
    return patches(array, site.window, chosen)
