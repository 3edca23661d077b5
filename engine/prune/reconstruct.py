"""Refit the weights of a network so that each layer gives again what the layer of the original gave."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import fixed_batch
from engine.contract import Context, Samples
from engine.data.batches import sample_bytes, sample_count
from engine.data.subsets import First
from engine.graph import io, linear
from engine.graph.activations import affordable_batch
from engine.graph.walk import DISK_BYTES, Walk
from engine.measure.acceptance import quality_drop
from engine.prune.refittable import Normalisation, Refittable, Rows, refittable, residual
from engine.report.detail_parts import counted
from engine.report.pruning_details import ReconstructDetails, RefittedLayer
from engine.report.values import Change, Refusal
from engine.solve.gram import Gram, Moments
from engine.solve.ridge import affine
from engine.solve.ridge import reconstruct as solve
from engine.target import Target

Array = npt.NDArray[Any]
# For each layer by name, which outputs of the original's layer it still has; not listed: all.
Kept = Mapping[str, npt.NDArray[np.intp]]

# One batch in so many is not fitted to: it decides whether the fit is taken.
_OTHER_ROWS = "the data decide how many rows it reads, and there are never as many as in the original"
_HELD_OUT_EVERY = 5
_LARGEST_BATCH = 32
_LEAST_BATCHES = 10
_MOST_SAMPLES = 1024
_MOST_BYTES = 256 << 20
# Rows per layer: this many, or so many for each column where that is more.
_ROWS = 16384
_ROWS_PER_COLUMN = 8
# Of channels whose place in the original has to be found out.
_LEAST_CORRELATION = 0.7


def repair(
    student: ir.Model,
    teacher: ir.Model,
    kept: Kept,
    samples: Samples,
    target: Target,
    *,
    exclude: frozenset[str] = frozenset(),
    progress: Callable[[float], None] = lambda _fraction: None,
    working: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[RefittedLayer]:
    """Refit the student's layers in place, in topological order, each on what it reads now; say what that gained.

    The target is the teacher's output of the same node; where that enters a residual sum, the teacher's sum less what the
    student adds to it, so that the layer also makes up for what was lost on the other way. Weights are solved for in closed
    form and taken only where the error on held-out samples drops. `working` is held for one batch at a time.
    """
    found, refused = refittable(student)
    made = {value.name: (node, value) for node in teacher.graph for value in node.outputs}
    reports = [_left(name, _op(student, name), reason) for name, reason in refused.items()]
    with tempfile.TemporaryDirectory(prefix="repair-") as folder:
        feeds = batches(student, samples)
        teaching, learning = (
            Walk(model, feeds, target, Path(folder, name), working=working)
            for name, model in (("teacher", teacher), ("student", student))
        )
        # The teacher may have its nodes in another order: it does not go past what a later layer asks for.
        places = [
            teaching.place(made[layer.out.name][0]) if layer.out.name in made else len(teacher.graph) for layer in found
        ]
        for number, layer in enumerate(found):
            reason = _objection(layer, layer.out.name in made, len(feeds), exclude)
            if reason is None:
                teaching.advance(min(places[number:]))
                learning.advance(learning.place(layer.node))
                spare([teaching, learning])
                fitting = _Fitting(layer, made[layer.out.name][1], kept.get(layer.name), (teaching, learning), working)
                reports.append(fitting.fit(student))
            else:
                reports.append(_left(layer.name, layer.node.op_type, reason))
            progress((number + 1) / len(found))
    return reports


def _left(node: str, op_type: str, reason: str) -> RefittedLayer:
    return RefittedLayer(node=node, op=op_type, taken=False, reason=reason)


def _refitted(layer: Refittable, before: float, after: float, *, taken: bool) -> RefittedLayer:
    """Errors are mean squares on held-out samples, as a share of the target's variance."""
    return RefittedLayer(
        node=layer.name,
        op=layer.node.op_type,
        taken=taken,
        error_before=round(before, 6),
        error_after=round(after, 6),
    )


def _objection(layer: Refittable, known: bool, feeds: int, exclude: frozenset[str]) -> str | None:
    if layer.name in exclude:
        return "the recipe excludes it"
    if not known:
        return "the original has no tensor of the name of its output"
    if feeds < 2:
        return "there are too few samples to fit to some and check on others"
    return None


def _op(model: ir.Model, name: str) -> str:
    return next((node.op_type for node in model.graph if linear.node_name(node) == name), "")


def batches(model: ir.Model, samples: Samples) -> list[Mapping[str, Array]]:
    """Give the calibration samples in feeds: enough of them that some can be held out."""
    first = next(iter(samples.batches(1)), None)
    if first is None:
        return []
    # They are all held in memory.
    count = min(len(samples), _MOST_SAMPLES, max(_LEAST_BATCHES, _MOST_BYTES // max(sample_bytes(first), 1)))
    fixed = fixed_batch(model, samples)
    size = fixed or affordable_batch(model, samples, max(1, min(_LARGEST_BATCH, count // _LEAST_BATCHES)))
    feeds: list[Mapping[str, Array]] = []
    taken = 0
    for feed in samples.batches(size):
        length = sample_count(feed)
        if taken >= count or (fixed and length < fixed):
            break
        feeds.append(feed)
        taken += length
    return feeds


def spare(walks: list[Walk]) -> None:
    """Use fewer samples where the tensors between two layers grow too large."""
    while sum(walk.bytes for walk in walks) > DISK_BYTES and walks[0].batches > _HELD_OUT_EVERY:
        fewer = max(_HELD_OUT_EVERY, walks[0].batches // 2)
        for walk in walks:
            walk.limit(fewer)


class _Fitting:
    """One layer between the two networks."""

    def __init__(
        self,
        layer: Refittable,
        original: ir.Value,
        kept: npt.NDArray[np.intp] | None,
        walks: tuple[Walk, Walk],
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        teacher, student = walks
        self._layer, self._working = layer, working
        self._axis = layer.channel_axis
        self._source = student.look(layer.source)
        self._batches = student.batches
        self._skip: Callable[[int], Array] | None = None
        self._target = teacher.look(str(original.name))
        self._kept = self._channels(student) if kept is None else kept
        theirs, own = _sum(original), residual(layer)
        if theirs is not None and own is not None and str(own.name) in student.live and teacher.can_make(theirs):
            self._target, self._skip = teacher.look(str(theirs.name)), student.look(str(own.name))

    def _channels(self, student: Walk) -> npt.NDArray[np.intp] | None:
        """Say which of the teacher's outputs the layer has; None: it cannot be told."""
        width = self._target(0).shape[self._axis]
        if width == self._layer.outputs:
            return np.arange(width)
        if width < self._layer.outputs:
            return None
        own = student.look(str(self._layer.out.name))
        rows = [
            [_as_rows(look(batch), self._axis) for look in (own, self._target)]
            for batch in range(min(4, self._batches))
        ]
        rows = [pair for pair in rows if len(pair[0]) == len(pair[1])]
        if not rows:
            return None
        return aligned(np.concatenate([pair[0] for pair in rows]), np.concatenate([pair[1] for pair in rows]))

    def _held(self, batch: int) -> bool:
        every = min(_HELD_OUT_EVERY, self._batches)
        return batch % every == every - 1

    def fit(self, model: ir.Model) -> RefittedLayer:
        """Sum over the samples, solve, and store what is better."""
        layer = self._layer
        if self._kept is None or len(self._kept) != layer.outputs:
            reason = "it is not known which of the original's channels it has"
            return _left(layer.name, layer.node.op_type, reason)
        return self._affine(model, layer) if isinstance(layer, Normalisation) else self._linear(model, layer)

    def _pair(self, batch: int) -> tuple[Array, Array] | None:
        """Give what the layer reads, and what it should have put out in the student's channels.

        None where the data decide how many rows there are, and the two networks have not the same ones.
        """
        assert self._kept is not None
        source, target = self._source(batch), np.take(self._target(batch), self._kept, axis=self._axis)
        if self._skip is not None:
            skip = self._skip(batch)
            if skip.shape != target.shape:
                return None
            target = target - skip
        layer = self._layer
        if isinstance(layer, Normalisation):
            return (source, target) if source.size == target.size else None
        return (source, target) if target.size == layer.row_count(source) * layer.outputs else None

    def _linear(self, model: ir.Model, layer: Rows) -> RefittedLayer:
        groups, columns = layer.linear.groups, layer.linear.inputs
        outputs = layer.outputs // groups
        fitted, kept_back = self._moments(layer)
        if not fitted.rows:
            return _left(layer.name, layer.node.op_type, _OTHER_ROWS)
        weights = layer.matrix().reshape(groups, outputs, columns)
        offset = layer.offset()
        offsets = None if offset is None else offset.reshape(groups, outputs)
        before = after = variance = 0.0
        biases: list[Array] = []
        new = weights.copy()
        for group in range(groups):
            fit, held_out = fitted.moments(group), kept_back.moments(group) if kept_back.rows else None
            bias = None if offsets is None else offsets[group]
            with self._working():
                solved = solve(fit, weights[group], bias, held_out=held_out, fit_bias=layer.bias is not None)
            new[group] = solved.weights
            biases.append(np.zeros(outputs) if solved.bias is None else solved.bias)
            before, after = before + solved.before, after + solved.after
            variance += _variance(held_out or fit)
        taken = after < before
        if taken:
            layer.store(model, new.reshape(layer.outputs, columns), np.concatenate(biases))
        scale = max(variance, 1e-30)
        return _refitted(layer, before / scale, after / scale, taken=taken)

    def _moments(self, layer: Rows) -> tuple[Gram, Gram]:
        """Sum over what the layer reads and should give: what is fitted to, and what decides whether the fit is taken."""
        first = self._source(0)
        per_sample = max(1, len(first))
        groups, columns = layer.linear.groups, layer.linear.inputs
        rows = max(_ROWS, _ROWS_PER_COLUMN * columns // groups)
        keep = max(1, -(-rows // (self._batches * per_sample)))
        fitted, kept_back = (Gram(columns, layer.outputs // groups, groups=groups, block=256) for _ in range(2))
        for batch in range(self._batches):
            with self._working():
                pair = self._pair(batch)
                if pair is None:
                    continue
                source, target = pair
                x = layer.rows(source, batch * per_sample, keep)
                y = layer.targets(target, source, batch * per_sample, keep)
                (kept_back if self._held(batch) else fitted).update(x, y)
        return fitted, kept_back

    def _affine(self, model: ir.Model, layer: Normalisation) -> RefittedLayer:
        """Refit gain and shift of a layer normalisation, channel by channel."""
        gain, shift = layer.gain(), layer.shift()
        sums = {held: np.zeros((5, layer.outputs)) for held in (False, True)}
        rows = {False: 0, True: 0}
        for batch in range(self._batches):
            with self._working():
                pair = self._pair(batch)
                if pair is None:
                    continue
                x = layer.normalised(pair[0]).reshape(-1, layer.outputs).astype(np.float64)
                y = pair[1].reshape(-1, layer.outputs).astype(np.float64)
                held = self._held(batch)
                sums[held] += np.stack([part.sum(0) for part in (x, y, x * x, x * y, y * y)])
                rows[held] += len(x)
        if not rows[False]:
            return _left(layer.name, layer.node.op_type, _OTHER_ROWS)
        x_sum, y_sum, xx, xy, _ = sums[False]
        new = affine(rows=rows[False], x_sum=x_sum, y_sum=y_sum, xx=xx, xy=xy, gain=gain)
        held = bool(rows[True])
        before, after = (_affine_error(sums[held], rows[held], *pair) for pair in ((gain, shift), new))
        # Channel by channel: one that gets worse stays as it was.
        better = after < before
        _, y_sum, _, _, yy = sums[held]
        variance = max(float((yy / rows[held] - np.square(y_sum / rows[held])).mean()), 1e-30)
        if better.any():
            layer.store(model, np.where(better, new[0], gain), np.where(better, new[1], shift))
        final = float(np.minimum(before, after).mean())
        return _refitted(layer, float(before.mean()) / variance, final / variance, taken=bool(better.any()))


def _sum(value: ir.Value) -> ir.Value | None:
    """Give the sum that a value enters and nothing else."""
    uses = list(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output() and uses[0].node.op_type == "Add"
    return uses[0].node.outputs[0] if alone else None


def _as_rows(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float32)


def aligned(own: Array, theirs: Array) -> npt.NDArray[np.intp] | None:
    """Find which columns of `theirs` those of `own` were: cutting keeps the order. None where they are too unlike."""
    correlation = _standard(own).T @ _standard(theirs) / len(own)
    count, width = correlation.shape
    best = np.full((count + 1, width + 1), -np.inf)
    best[0] = 0.0
    for row in range(count):
        best[row + 1, 1:] = np.maximum.accumulate(best[row, :-1] + correlation[row])
    found = np.zeros(count, np.intp)
    column = width
    for row in range(count, 0, -1):
        while best[row, column] == best[row, column - 1]:
            column -= 1
        column -= 1
        found[row - 1] = column
    alike = float(correlation[np.arange(count), found].mean())
    return found if alike >= _LEAST_CORRELATION else None


def _standard(rows: Array) -> Array:
    centred = rows - rows.mean(0)
    found: Array = centred / np.maximum(centred.std(0), 1e-12)
    return found


def _affine_error(sums: Array, rows: int, gain: Array, shift: Array) -> Array:
    x_sum, y_sum, xx, xy, yy = sums
    total = gain**2 * xx + yy + rows * shift**2 + 2 * gain * shift * x_sum - 2 * gain * xy - 2 * shift * y_sum
    found: Array = total / rows
    return found


def _variance(moments: Moments) -> float:
    mean = moments.y_sum / moments.rows
    return float((moments.y_squares / moments.rows - mean * mean).mean())


# --- as a pass of its own --------------------------------------------------------------------------------------------


def reconstruct(
    model: ir.Model, exclude: frozenset[str], context: Context, *, samples: int | None = None
) -> Change | Refusal:
    """Refit a network towards the original in place, on at most so many samples; refuse if its outputs do not come closer to it."""
    assert context.calibration is not None
    ir.external_data.load_to_model(model)
    before = quality_drop(context.evaluate(io.copy(model)))
    refits = repair(
        model,
        context.original,
        {},
        context.calibration if samples is None else First(context.calibration, samples),
        context.untimed,
        exclude=exclude,
        progress=lambda share: context.progress(0.75 * share, "refitting layers"),
        working=context.working,
    )
    taken = [refit for refit in refits if refit.taken]
    if not taken:
        reasons = sorted({refit.reason for refit in refits if refit.reason})
        return Refusal(
            code="not_applicable",
            reason="No layer could be brought closer to the original's"
            + (f": {'; '.join(reasons)}." if reasons else "."),
            hint="Layers are matched by the names of their nodes.",
        )
    after = quality_drop(context.evaluate(model))
    if before is not None and after is not None and after > before:
        return Refusal(
            code="no_gain", reason=f"The refitted network loses {after:.4g}, the network before {before:.4g}."
        )
    return Change(
        summary=f"{len(taken)} of {counted(len(refits), 'layer')} {'was' if len(taken) == 1 else 'were'} refitted towards the original's.",
        details=ReconstructDetails(layers=tuple(refits), drop_before=before, drop_after=after),
        repair=True,
    )
