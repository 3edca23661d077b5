"""A look at the original before any work: whether it gets anything right, and whether its inputs look prepared as it expects.

What the data and the first layers show is held against each other; where that leaves a doubt and there are labels, a few other
preparations of the same inputs are tried. One that reads far better is named with both figures.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.contract import Samples
from engine.data.batches import Alone, run_size, sample_count
from engine.data.subsets import First
from engine.errors import EngineError
from engine.graph.input_stem import InputStem, Normalisation, QuantizedRange, cut_to, input_stems
from engine.job.data import Labelled
from engine.measure.plausibility import Seen, doubts, is_far_better, look_at_baseline, right_share
from engine.measure.quality import Evaluator, Network
from engine.runtime import sessions
from engine.target import Target

Array = npt.NDArray[Any]
Prepare = Callable[[Array], Array]

_LOOKED_AT = 32
# Numbers of an input, or of a tensor behind it, that tell enough.
_NUMBERS = 1 << 22
_TRIED = 128
_FEWEST_TRIED = 24
_SECONDS = 15.0
# How many times larger or smaller than the network's own statistics say numbers have to be to be doubted.
_TOO_WIDE, _TOO_NARROW = 8.0, 1 / 16
# Of numbers behind a first layer, beside its biases.
_BESIDE_BIAS = 50.0
# Brightness as it comes from a file, and after training's preparation.
_BRIGHT, _PREPARED = 30.0, 4.0
_LARGEST_NETWORK = 1 << 29
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def check_baseline(
    network: Network, evaluator: Evaluator, data: Labelled, model: ir.Model, target: Target
) -> list[str]:
    """Give what speaks against the original or its data, in sentences; nothing where it reads its labels well.

    Args:
        network: the original, loaded.
        evaluator: made of it and `data`.
        data: the samples to choose by.
        model: the original's graph.
        target: to run the first layers on.
    """
    seen = _seen(evaluator)
    found = list(doubts(seen))
    if not found and (seen.wanted or seen.values or seen.distances):
        # Whoever reads the labels well gets what it expects.
        return []
    about_inputs = all(doubt.inputs for doubt in found)
    ranges = [_Inputs.of(stem, data.samples) for stem in input_stems(model)] if about_inputs else []
    said = [doubt.said for doubt in found]
    said += [text for each in ranges if each is not None for text in _stem_doubts(each, data.samples, model, target)]
    if said and about_inputs and seen.wanted and data.labels is not None:
        tried = _try_preparations(network, data, seen, [each for each in ranges if each is not None], model)
        said = [*said, tried] if tried is not None else said
    return said


def _seen(evaluator: Evaluator) -> Seen:
    classifies = any(each.main and each.kind == "classes" for each in evaluator.outputs)
    return look_at_baseline(evaluator.said(), evaluator.metric, evaluator.how, classifies=classifies)


def likely_layout(model: ir.Model, feed: Mapping[str, Array]) -> str | None:
    """Say that an image's channels lie at the other end than its first convolution reads them, if that is so."""
    for stem in input_stems(model):
        shape = feed[stem.name].shape if stem.name in feed else ()
        if stem.channels is not None and len(shape) == 4 and shape[1] != stem.channels == shape[3]:
            return (
                f"Array `{stem.name}` has {shape[3]} channels last, as it seems; the first convolution reads {stem.channels} on"
                f" axis 1. Turn the axes: {stem.name}.transpose(0, 3, 1, 2)."
            )
    return None


@dataclass(frozen=True)
class _Inputs:
    """The numbers of one input in the first samples."""

    stem: InputStem
    shape: tuple[int, ...]
    low: float
    high: float
    deviation: float
    whole: bool
    # Mean and deviation of each column, of an input that has columns alone.
    columns: tuple[Array, Array] | None = None

    @classmethod
    def of(cls, stem: InputStem, samples: Samples) -> "_Inputs | None":
        feeds = (feed[stem.name] for feed in First(samples, _LOOKED_AT).batches(4) if stem.name in feed)
        taken = _until_enough(feeds)
        flat = np.concatenate([np.asarray(each, np.float64).reshape(-1) for each in taken]) if taken else np.zeros(0)
        if not flat.size:
            return None
        whole = bool((flat == np.floor(flat)).all())
        columns = None
        widths = {each.shape[1] for each in taken} if taken[0].ndim == 2 else set()
        if len(widths) == 1 and widths != {1}:
            table = np.concatenate(taken).astype(np.float64)
            columns = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-6)
        return cls(stem, taken[0].shape, float(flat.min()), float(flat.max()), float(flat.std()), whole, columns)

    @property
    def told(self) -> str:
        return f"the data for input `{self.stem.name}` go from {self.low:.4g} to {self.high:.4g}"

    @property
    def bright(self) -> bool:
        """Say whether these may be pixels as they come from a file."""
        return self.low >= 0 and _BRIGHT < self.high <= 255


def _until_enough(arrays: Iterable[Array]) -> list[Array]:
    found: list[Array] = []
    for array in arrays:
        found.append(array)
        if sum(each.size for each in found) >= _NUMBERS:
            break
    return found


# What the first layers say


def _stem_doubts(inputs: _Inputs, samples: Samples, model: ir.Model, target: Target) -> Iterator[str]:
    stem = inputs.stem
    if stem.quantized is not None:
        yield from _of_quantized(inputs, stem.quantized)
    elif stem.normalisation is not None:
        yield from _of_normalisation(
            inputs, stem.normalisation, _first_values(samples, model, stem.normalisation.tensor, target)
        )
    elif stem.scaled:
        yield from _of_scale(inputs)
    elif inputs.bright and stem.first is not None and stem.bias:
        values = _first_values(samples, model, stem.first, target)
        size = None if values is None else float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        if size is not None and size > _BESIDE_BIAS * max(stem.bias, 1.0):
            yield (
                f"The inputs look unprepared: {inputs.told}{' in whole steps' if inputs.whole else ''}, the network does not"
                f" scale them itself, and its first layer makes numbers of about {size:.3g} of them beside biases of about"
                f" {stem.bias:.2g}. Networks trained on 0 to 1, or on mean 0 and deviation 1, need the same for their data."
            )


def _of_quantized(inputs: _Inputs, kept: QuantizedRange) -> Iterator[str]:
    span, wide = max(abs(kept.low), abs(kept.high)), max(abs(inputs.low), abs(inputs.high))
    if wide > _TOO_WIDE * span or wide < _TOO_NARROW / 4 * span:
        yield (
            f"The inputs look to be on another scale: {inputs.told}, the network itself keeps {kept.low:.4g} to"
            f" {kept.high:.4g} of it."
        )


def _of_normalisation(inputs: _Inputs, norm: Normalisation, values: Array | None) -> Iterator[str]:
    if values is None or values.ndim < 2 or values.shape[1] != len(norm.deviation) or values.size == values.shape[1]:
        return
    over = tuple(axis for axis in range(values.ndim) if axis != 1)
    ratio = float(np.median(values.std(axis=over, dtype=np.float64) / np.maximum(norm.deviation, 1e-12)))
    if _TOO_NARROW <= ratio <= _TOO_WIDE:
        return
    wrong = f"{ratio:.3g} times as wide as" if ratio > 1 else f"only {ratio:.2g} of"
    likely = " They look like pixels of 0 to 255 that were not divided." if ratio > 1 and inputs.bright else ""
    yield (
        f"The inputs look to be on another scale than in training: {inputs.told}, and where the network first normalises them"
        f" (`{norm.node}`), they are {wrong} what it learned.{likely}"
    )


def _of_scale(inputs: _Inputs) -> Iterator[str]:
    stem = inputs.stem
    after = inputs.deviation * abs(stem.scale)
    if (
        inputs.high <= _PREPARED
        and inputs.low >= -_PREPARED
        and (abs(stem.scale) < 1 / _BRIGHT or abs(stem.offset) > _PREPARED)
    ):
        yield (
            f"The inputs look to be prepared twice: {inputs.told}, but the network itself scales what it gets (about x"
            f" {stem.scale:.3g} {stem.offset:+.3g}), as for numbers of 0 to 255."
        )
    elif after > _BRIGHT:
        yield (
            f"The inputs look unprepared: {inputs.told}, and the network's own scaling (about x {stem.scale:.3g}"
            f" {stem.offset:+.3g}) leaves them with a deviation of {after:.3g}."
        )


def _first_values(samples: Samples, model: ir.Model, tensor: str, target: Target) -> Array | None:
    """Give a tensor of the first layers for the first samples; None where that is too much, or does not run."""
    if (
        sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        > _LARGEST_NETWORK
    ):
        return None
    try:
        session = sessions.session(cut_to(model, tensor), target)
        size = run_size([port.shape for port in session.inputs], samples) or 4
        wanted = {port.name for port in session.inputs}
        feeds = (
            feed for feed in First(samples, max(_LOOKED_AT // 2, size)).batches(size) if sample_count(feed) == size
        )
        runs = (session.run({name: array for name, array in feed.items() if name in wanted}) for feed in feeds)
        values = _until_enough(next(iter(each.values())) for each in runs)
        return np.concatenate(values) if values else None
    except (EngineError, ValueError):
        # The first layers of networks of varying sizes may not lie together; nothing depends on it.
        return None


# Other preparations, tried on labelled samples


def _try_preparations(
    network: Network, data: Labelled, seen: Seen, inputs: Sequence[_Inputs], model: ir.Model
) -> str | None:
    """Name the preparation of one input with which the network reads far better, if there is one."""
    preparations = [(each.stem.name, how, prepare) for each in inputs for how, prepare in _preparations(each)]
    count = _affordable(network, data, len(preparations))
    best: tuple[float, str] | None = None
    for name, how, prepare in preparations if count >= _FEWEST_TRIED else ():
        other = _seen_with(network, _Prepared(First(data.samples, count), name, prepare), data, model)
        share = None if other is None else right_share(other)
        if other is None or share is None or not is_far_better(other, seen) or (best is not None and share <= best[0]):
            continue
        best = (
            share,
            (
                f"With input `{name}` {how}, the original would be right on {share:.1%} of {other.samples} samples: the data seem"
                " to lack that."
            ),
        )
    return None if best is None else best[1]


def _affordable(network: Network, data: Labelled, trials: int) -> int:
    """Give how many samples each trial may have, so that all of them take a few seconds."""
    if not trials:
        return 0
    feed = next(iter(data.samples.batches(1)))
    started = time.perf_counter()
    try:
        network.run(feed)
    except EngineError:
        # It takes another number at a time; the first runs of the job have shown that it runs.
        return min(_FEWEST_TRIED, len(data.samples))
    each = max(time.perf_counter() - started, 1e-6)
    return min(_TRIED, len(data.samples), int(_SECONDS / each / trials))


def _seen_with(network: Network, samples: Samples, data: Labelled, model: ir.Model) -> Seen | None:
    assert data.labels is not None
    try:
        with Evaluator(
            network,
            samples,
            labels=data.labels[: len(samples)],
            label_facts=data.facts,
            metric=data.metric,
            graph=model,
        ) as evaluator:
            return _seen(evaluator)
    except EngineError:
        return None


@dataclass(frozen=True)
class _Prepared:
    """Samples of which one input is prepared in another way."""

    samples: Samples
    name: str
    prepare: Prepare

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, size: int) -> Iterator[Mapping[str, Array]]:
        for feed in self.samples.batches(size):
            array = feed[self.name]
            changed = {
                **feed,
                self.name: np.ascontiguousarray(self.prepare(array.astype(np.float32)).astype(array.dtype)),
            }
            yield Alone(changed) if isinstance(feed, Alone) else changed


def _preparations(inputs: _Inputs) -> Iterator[tuple[str, Prepare]]:
    """Yield the usual ways to prepare an input, in words and as a function."""
    axis = _colours(inputs.shape)
    if inputs.bright:
        yield "divided by 255", lambda x: x / 255
        yield "brought from 0..255 to -1..1", lambda x: x / 127.5 - 1
        if axis is not None:
            yield "divided by 255 and normalised (ImageNet's mean and deviation)", lambda x: _normalised(x / 255, axis)
    elif inputs.low >= 0 and inputs.high <= 1:
        yield "multiplied by 255", lambda x: x * 255
        yield "brought from 0..1 to -1..1", lambda x: x * 2 - 1
        if axis is not None:
            yield "normalised (ImageNet's mean and deviation)", lambda x: _normalised(x, axis)
    elif -_PREPARED < inputs.low < 0 and inputs.high < _PREPARED:
        yield "brought from -1..1 to 0..255", lambda x: (x + 1) * 127.5
        yield "brought from -1..1 to 0..1", lambda x: (x + 1) / 2
    if axis is not None:
        yield "with its colours in the other order (BGR for RGB)", lambda x: np.flip(x, axis)
    if len(inputs.shape) == 4 and axis is not None:
        yield (
            "read with the channels at the other end (transpose the axes, do not reshape them)",
            lambda x: _turned(x, axis),
        )
    if len(inputs.shape) == 4 and axis == 1 and inputs.shape[2] == inputs.shape[3]:
        yield "with height and width swapped", lambda x: x.swapaxes(2, 3)
    if inputs.columns is not None:
        mean, deviation = inputs.columns
        yield "standardised, each column to mean 0 and deviation 1", lambda x: (x - mean) / deviation


def _colours(shape: tuple[int, ...]) -> int | None:
    if len(shape) != 4:
        return None
    return 1 if shape[1] == 3 else 3 if shape[3] == 3 else None


def _normalised(x: Array, axis: int) -> Array:
    shape = [3 if at == axis else 1 for at in range(x.ndim)]
    found: Array = (x - _MEAN.reshape(shape)) / _DEVIATION.reshape(shape)
    return found


def _turned(x: Array, axis: int) -> Array:
    """Read the numbers as they lie, as if the channels were at the other end, and turn the axes to where they should be."""
    n, *_ = x.shape
    if axis == 1:
        return x.reshape(n, x.shape[2], x.shape[3], 3).transpose(0, 3, 1, 2)
    return x.reshape(n, 3, x.shape[1], x.shape[2]).transpose(0, 2, 3, 1)
