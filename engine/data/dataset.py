"""Named arrays for calibration and evaluation: what an untrusted file holds, and how samples are split and fed."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt

from engine.data.batches import are_alone, batch_axes, sample_axes, whole
from engine.data.completion import completed
from engine.data.containers import Container, Header, Varying, open_container
from engine.data.containers.array import CHUNK_BYTES
from engine.data.decoder_inputs import follow, tokens_input
from engine.data.initial_state import initial_states
from engine.data.labels import UNLABELLED, LabelFacts, class_numbers, is_labelled, look_at, usual_metric
from engine.data.mapped import let_go
from engine.data.next_tokens import MASK, TOKENS, has_next_tokens, next_tokens
from engine.data.parts import CALIBRATE, JUDGE, PART, SELECT, Drawn, Sizes, draw
from engine.data.sample_lengths import length_arrays
from engine.errors import DatasetInvalidError
from engine.gate import MEASURED_WITH, TaskMetric
from engine.inspection import INSPECTION_BYTES, NAME_LETTERS, ArrayInfo, DatasetInspection, DeclaredParts, TensorInfo

LABEL = "label"
# What a part of that size is copied to, so that nothing leads from it to the other samples.
_HELD_BYTES = 64 << 20
_SEED = 0
_RANDOM_TOKENS = 16

Array = npt.NDArray[Any]


def inspect_dataset(path: Path, *, metric: str | None = None) -> DatasetInspection:
    """Check an untrusted file and say what it holds; raises DatasetInvalidError."""
    if metric is not None and metric not in get_args(TaskMetric):
        raise DatasetInvalidError(
            f"The metric `{metric}` is not known.", hint=f"Known are {', '.join(get_args(TaskMetric))}."
        )
    metric = None if metric is None else MEASURED_WITH.get(metric, metric)
    with open_container(path) as container, tempfile.TemporaryDirectory(prefix="labels-") as scratch:
        _check_names(container.names())
        headers, preprocessing = container.check(), container.preprocessing()
        samples = _count(headers)
        kept = _label(container, headers, Path(scratch), metric)
        metric = None if kept is None else metric or usual_metric(kept, look_at(kept))
        labelled = None if kept is None else is_labelled(kept, metric)
        declared = _declared(container, headers, Path(scratch), labelled)
    found = {
        name: ArrayInfo(
            name=name,
            dtype=header.dtype.name,
            shape=header.shape,
            low=header.values.low,
            high=header.values.high,
            misfits=header.values.told(),
        )
        for name, header in headers.items()
    }
    label = found.pop(LABEL, None)
    if label is None and kept is not None:
        label = ArrayInfo(name=LABEL, dtype=kept.dtype.name, shape=kept.shape)
    count = 0 if labelled is None else int(labelled.sum())
    told = DatasetInspection(
        arrays=tuple(found.values()),
        label=label,
        samples=samples,
        labelled=count,
        unlabelled=samples - count,
        declared=declared,
        metric=metric,
        preprocessing=preprocessing,
    )
    size = len(told.model_dump_json())
    if size > INSPECTION_BYTES:
        raise DatasetInvalidError(
            f"What this service keeps of a dataset, such as its arrays' names and what was done to them, takes {size} bytes here;"
            f" {INSPECTION_BYTES} are the limit.",
            hint="Give it fewer arrays or shorter names, or say less of its preprocessing.",
        )
    return told


class Dataset:
    """A checked file, opened for use; arrays are mapped from it where that can be."""

    def __init__(self, arrays: Mapping[str, Array | Varying], label: Array | None, metric: str | None = None) -> None:
        self.arrays = dict(arrays)
        self.label = label
        self.metric = metric

    @classmethod
    def open(cls, path: Path, scratch: Path, *, metric: str | None = None) -> Self:
        """Open the arrays without reading them into memory where that can be avoided; `metric` is what labels are for."""
        with open_container(path) as container:
            arrays = {name: container.array(name, scratch) for name in container.names()}
        label = arrays.pop(LABEL, None)
        if label is None and metric == "perplexity":
            label = next_tokens(arrays)
        # Varying labels were refused.
        assert not isinstance(label, Varying)
        return cls(arrays, label, metric)

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(next(iter(self.arrays.values())))

    def parts(self, sizes: Sizes) -> Drawn:
        """Give the indices of the samples that calibrate, that things are chosen on, and that judge."""
        part = self.arrays.get(PART)
        assert not isinstance(part, Varying)
        return draw(
            sizes,
            len(self),
            labels=None if self.label is None else class_numbers(self.label, self.metric),
            labelled=None if self.label is None else is_labelled(self.label, self.metric),
            part=part,
        )

    def completed(self, inputs: tuple[TensorInfo, ...]) -> "Dataset":
        """Give it with an array for every input, each as it is fed: cut to its lengths, and states as before the first step."""
        lengths = length_arrays(self.arrays, inputs)
        arrays = {name: array for name, array in self.arrays.items() if name not in lengths.values()}
        label = self.label
        for name, by in lengths.items():
            counts = np.asarray(self.arrays[by]).reshape(-1)
            arrays[name] = _cut_to(arrays[name], counts)
            label = _labelled_to(label, counts, self.arrays[name])
        # What follows from a decoder's tokens is made when they are fed.
        known = {*arrays, *follow(inputs, arrays)}
        for name, state in initial_states(inputs, known, None).items():
            if state is None:
                raise DatasetInvalidError(f"The dataset has no array for the input `{name}`")
            arrays[name] = np.broadcast_to(np.zeros(state.shape, _dtype(state.dtype)), (len(self), *state.shape))
        return Dataset(arrays, label, self.metric)

    def only(self, indices: npt.NDArray[np.int64], inputs: tuple[TensorInfo, ...], scratch: Path) -> "Dataset":
        """Copy the inputs of some samples, without labels; nothing leads from the copy to the other samples.

        What is large goes to a file in `scratch`.
        """
        given = [each.name for each in inputs if each.name in self.arrays]
        return Dataset({name: _copied(self.arrays[name], indices, scratch) for name in given}, None)

    def samples(self, inputs: tuple[TensorInfo, ...], indices: npt.NDArray[np.int64] | None = None) -> "Samples":
        """Give all or some of the samples as feeds for a network with these inputs."""
        wanted = {tensor.name: _dtype(tensor.dtype) for tensor in inputs}
        arrays = completed({name: self.arrays[name] for name in wanted if name in self.arrays}, inputs)
        ranks = {name: _rank(array) for name, array in arrays.items()}
        axes = sample_axes({tensor.name: tensor.shape for tensor in inputs}, ranks)
        return Samples(arrays, wanted, np.arange(len(self)) if indices is None else indices, axes)

    def labels(self, indices: npt.NDArray[np.int64] | None = None) -> Array | None:
        """Give the labels of all or some of the samples; None where not all of them have one."""
        if self.label is None:
            return None
        chosen = np.asarray(self.label if indices is None else self.label[indices])
        return chosen if bool(is_labelled(chosen, self.metric).all()) else None

    @cached_property
    def label_facts(self) -> LabelFacts | None:
        """Give what holds for all labels."""
        return None if self.label is None else look_at(self.label)


class Samples:
    """Some samples of a dataset; batches are cast by value to the types that the network takes.

    `axes` says where the samples' axis goes in each input; without it, it stays the first. Unless it does in all of them,
    samples come one at a time, each as the network takes it.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array | Varying],
        dtypes: Mapping[str, Any],
        indices: npt.NDArray[np.int64],
        axes: Mapping[str, int | None] | None = None,
        *,
        fixed: int | None = None,
    ) -> None:
        self._arrays = arrays
        self._dtypes = dtypes
        self._indices = indices
        self._axes = axes if axes is not None and (fixed == 1 or are_alone(axes)) else None
        # How many the network takes at a time, where its inputs do not say it.
        self.fixed = fixed

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self._indices)

    def at_a_time(self, count: int) -> "Samples":
        """Give the same samples for a network that takes so many at a time and no other number."""
        axes = self._axes if self._axes is not None else dict.fromkeys(self._arrays, 0)
        return Samples(self._arrays, self._dtypes, self._indices, axes, fixed=count)

    def subset(self, places: npt.NDArray[np.int64]) -> "Samples":
        """Give some of them, each by its place among these, in this order."""
        return Samples(self._arrays, self._dtypes, self._indices[places], self._axes, fixed=self.fixed)

    def alike(self) -> npt.NDArray[np.int64] | None:
        """Give a number for each sample that only samples of equal shapes share; None where all have equal ones."""
        varying = [array for array in self._arrays.values() if isinstance(array, Varying)]
        if not varying:
            return None
        shapes = [tuple(array.shapes[index] for array in varying) for index in self._indices]
        numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        return np.array([numbers[shape] for shape in shapes], np.int64)

    def batches(self, size: int) -> Iterator[Mapping[str, Array]]:
        """Yield all samples in order, `size` at a time; the last batch, or one before a sample of another size, is smaller."""
        if self._axes is not None:
            yield from self._alone(self._axes)
            return
        for chosen in self._runs(size):
            batch = {
                name: np.ascontiguousarray(array[chosen]).astype(self._dtypes[name], copy=False)
                for name, array in self._arrays.items()
            }
            self._let_go()
            yield batch

    def _alone(self, axes: Mapping[str, int | None]) -> Iterator[Mapping[str, Array]]:
        for index in self._indices:
            one = {name: np.asarray(array[np.array([index])][0]) for name, array in self._arrays.items()}
            self._let_go()
            yield whole({name: array.astype(self._dtypes[name], copy=False) for name, array in one.items()}, axes)

    def _let_go(self) -> None:
        for array in self._arrays.values():
            if not isinstance(array, Varying):
                let_go(array)

    def _runs(self, size: int) -> Iterator[npt.NDArray[np.int64]]:
        varying = [array for array in self._arrays.values() if isinstance(array, Varying)]
        start = 0
        while start < len(self._indices):
            stop = start + 1
            while stop < min(start + size, len(self._indices)) and all(
                array.shapes[self._indices[stop]] == array.shapes[self._indices[start]] for array in varying
            ):
                stop += 1
            yield self._indices[start:stop]
            start = stop


def random_samples(
    inputs: tuple[TensorInfo, ...], count: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Samples:
    """Make samples where there are no data: normal numbers for float inputs, zeros and ones for the others.

    They are only good for telling whether a lossless step changed a network. Open axes have size 1, or 8 for spatial ones; a
    decoder gets texts of 16 tokens and an empty cache. Where not all inputs have the samples on their first axis, each sample
    is a whole input of each.
    """
    draw = np.random.default_rng(_SEED)
    arrays: dict[str, Array] = {}
    axes = batch_axes({tensor.name: tensor.shape for tensor in inputs})
    alone = are_alone(axes)
    tokens = tokens_input(inputs)
    follows = follow(inputs, {*(shapes or {}), *([tokens.name] if tokens else [])})
    for tensor in inputs:
        if tensor.name in follows:
            continue
        shape = (shapes or {}).get(tensor.name) or _concrete(tensor, tokens=bool(follows) and tensor is tokens)
        full = (count, *(shape if alone else shape[1:]))
        dtype = _dtype(tensor.dtype)
        is_float = tensor.dtype in {"float16", "bfloat16", "float32", "float64"}
        arrays[tensor.name] = (
            draw.standard_normal(full).astype(dtype) if is_float else draw.integers(0, 2, full).astype(dtype)
        )
    dtypes = {tensor.name: _dtype(tensor.dtype) for tensor in inputs}
    return Samples(completed(arrays, inputs), dtypes, np.arange(count), dict.fromkeys(arrays) if alone else None)


def _concrete(tensor: TensorInfo, *, tokens: bool = False) -> tuple[int, ...]:
    shape = (1,) if tensor.shape is None else tensor.shape
    opened = [1, _RANDOM_TOKENS] if tokens else [1, 1]
    return tuple(size if isinstance(size, int) else 8 if axis >= 2 else opened[axis] for axis, size in enumerate(shape))


def _rank(array: Array | Varying) -> int:
    return len(array.shapes[0]) + 1 if isinstance(array, Varying) else array.ndim


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415  # only for the one type that numpy lacks

        return ml_dtypes.bfloat16
    return np.dtype(name)


def _check_names(names: Sequence[str]) -> None:
    long = next((name for name in names if len(name) > NAME_LETTERS), None)
    if long is not None:
        raise DatasetInvalidError(
            f"An array has a name of {len(long)} letters, `{long[:40]}...`; {NAME_LETTERS} are the limit."
        )
    unreadable = next((name for name in names if "\0" in name), None)
    if unreadable is not None:
        raise DatasetInvalidError(f"The name of an array holds a NUL: {unreadable[:40]!r}; name it in plain letters.")


def _count(headers: Mapping[str, Header]) -> int:
    """Give the number of samples; every array must have as many."""
    scalars = sorted(name for name, header in headers.items() if not header.shape)
    if scalars:
        raise DatasetInvalidError(f"Array `{scalars[0]}` is a single number; its first axis must count the samples.")
    counts = {header.shape[0] for header in headers.values()}
    if len(counts) != 1:
        sizes = ", ".join(f"{name} {header.shape[0]}" for name, header in sorted(headers.items()))
        raise DatasetInvalidError(f"The arrays differ in the number of samples (first axis): {sizes}.")
    samples = counts.pop()
    if not samples:
        raise DatasetInvalidError("The dataset holds no samples.")
    if set(headers) == {LABEL}:
        raise DatasetInvalidError("The dataset holds labels, but no inputs.")
    if LABEL in headers and None in headers[LABEL].shape:
        raise DatasetInvalidError(
            "The labels differ in size from sample to sample.", hint="Fill short ones up with -1 to one size."
        )
    return samples


def _label(container: Container, headers: Mapping[str, Header], scratch: Path, metric: str | None) -> Array | None:
    if LABEL not in headers and has_next_tokens(headers, metric):
        return next_tokens({name: container.array(name, scratch) for name in headers if name in {TOKENS, MASK}})
    label = container.array(LABEL, scratch) if LABEL in headers else None
    # Varying labels were refused.
    assert not isinstance(label, Varying)
    return label


def _declared(
    container: Container, headers: Mapping[str, Header], scratch: Path, labelled: npt.NDArray[np.bool_] | None
) -> DeclaredParts | None:
    if PART not in headers:
        return None
    shape, dtype = headers[PART].shape, headers[PART].dtype
    if len(shape) != 1 or dtype.kind not in "iu":
        return DeclaredParts(problem=f"The array `{PART}` is {dtype} {list(shape)}, not one whole number per sample.")
    part = np.asarray(container.array(PART, scratch))
    outside = np.flatnonzero((part < CALIBRATE) | (part > JUDGE))
    if len(outside):
        return DeclaredParts(
            problem=f"The array `{PART}` holds {part[outside[0]]} for sample {outside[0]}; it may hold 0, 1 and 2."
        )
    known = np.zeros(len(part), np.bool_) if labelled is None else labelled
    return DeclaredParts(
        calibrate=int((part == CALIBRATE).sum()),
        select=int((part == SELECT).sum()),
        judge=int((part == JUDGE).sum()),
        select_labelled=int(known[part == SELECT].sum()),
        judge_labelled=int(known[part == JUDGE].sum()),
    )


def _cut_to(array: Array | Varying, counts: Array) -> Varying:
    """Give samples of which only the first positions count, each as long as it is."""
    # Their sizes were checked: one for all samples.
    assert not isinstance(array, Varying)
    shapes = [(int(count), *array.shape[2:]) for count in counts]
    return Varying(shapes, array.dtype, lambda index: array[index, : int(counts[index])])


def _labelled_to(label: Array | None, counts: Array, array: Array | Varying) -> Array | None:
    """Take the labels from positions that do not count, where there is one for each."""
    if label is None or isinstance(array, Varying) or label.ndim != 2 or label.shape[1] != array.shape[1]:
        return label
    if label.dtype.kind not in "iu":
        return label
    return np.where(np.arange(label.shape[1]) < counts[:, None], label.astype(np.int64), UNLABELLED)


def _copied(array: Array | Varying, indices: npt.NDArray[np.int64], scratch: Path) -> Array | Varying:
    if isinstance(array, Varying):
        shapes = [array.shapes[index] for index in indices]
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        flat = _room((int(ends[-1]),), array.dtype, scratch)
        for number, index in enumerate(indices):
            flat[ends[number] : ends[number + 1]] = array[np.array([index])].reshape(-1)
        return Varying(shapes, array.dtype, partial(_cut, flat, ends, shapes))
    if array.ndim and array.strides[0] == 0:
        # The same for all samples.
        return array[: len(indices)]
    room = _room((len(indices), *array.shape[1:]), array.dtype, scratch)
    step = max(1, CHUNK_BYTES // max(1, room[:1].nbytes))
    for start in range(0, len(indices), step):
        room[start : start + step] = array[indices[start : start + step]]
        let_go(array)
        let_go(room)
    return room


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], scratch: Path) -> Array:
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= _HELD_BYTES:
        return np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="part-", delete=False) as file:
        return np.memmap(file.name, dtype, "w+", 0, shape)


def _cut(flat: Array, ends: Array, shapes: list[tuple[int, ...]], index: int) -> Array:
    return flat[ends[index] : ends[index + 1]].reshape(shapes[index])
