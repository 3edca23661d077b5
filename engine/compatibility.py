"""Whether a network, a dataset and a spec fit together, told from stored inspections alone: no file is opened."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import assert_never

from engine.data.batches import are_alone, batch_axes, run_size, sample_axes
from engine.data.decoder_inputs import follow
from engine.data.initial_state import InitialState, initial_states, told
from engine.data.parts import PART, Sizes, part_sizes
from engine.data.sample_lengths import cut_arrays, length_arrays
from engine.errors import DatasetInvalidError, SpecInvalidError
from engine.gate import FIDELITY_METRICS, KIND_METRICS, KIND_TASKS, MEASURED_WITH, TASK_METRICS, Gate
from engine.gate_samples import GateSamples, gate_samples, too_few
from engine.inspection import ArrayInfo, DatasetInspection, Inspection, TensorInfo
from engine.outputs import OutputDeclaration
from engine.report.wording import SHARES
from engine.spec import Compress, Profile, Search, Spec, makes_network, targets_of
from engine.target import Target

_WITHOUT_DATA = {
    "compress": "Without a dataset, quality is judged on random inputs only.",
    "search": "Without a dataset, quality is judged on random inputs only, and the search changes only how numbers are stored.",
    "profile": "Without a dataset, the network is measured on random inputs; where its work depends on them, give some.",
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
_SIGNED = ("int8", "int16", "int32", "int64")


# Below that many judged samples a change of one point of accuracy cannot be told from chance.
_FEW_JUDGED = 300


def check_fit(
    inspection: Inspection,
    dataset: DatasetInspection | None,
    spec: Spec,
    baseline: Inspection | None = None,
    judge: DatasetInspection | None = None,
    *,
    student: Inspection | None = None,
    teacher: Inspection | None = None,
    declared: Mapping[str, OutputDeclaration] | None = None,
) -> list[str]:
    """Give warnings about a job before it runs.

    Args:
        inspection: of the network.
        dataset: what calibrates, is chosen on, and without a second dataset also judges.
        spec: what the job asks for.
        baseline: what a profile compares with.
        judge: a second dataset, which alone judges.
        student: what a compression starts from instead of the network.
        teacher: what that learns from instead of the network.
        declared: what the dataset says of outputs; what the spec says goes before it.

    Raises:
        DatasetInvalidError: the data do not fit the network, or cannot be parted.
        SpecInvalidError: the spec asks for what this network and data cannot give.
    """
    for data in (dataset, judge):
        if data is not None:
            check_arrays(inspection, data)
    inputs = [tensor.name for tensor in inspection.inputs]
    check_data(dataset, spec, has_baseline=baseline is not None, judge=judge, inputs=inputs)
    match spec:
        case Compress():
            _check_passes(student or inspection, spec)
        case Profile() | Search():
            pass
        case _:
            assert_never(spec)
    _check_outputs(inspection, spec, {**(declared or {}), **spec.outputs})
    if baseline is not None:
        _check_same_inputs("baseline", baseline, inspection)
    _check_learning(inspection, spec, {"student": student, "teacher": teacher})
    for target in targets_of(spec):
        _check_shapes(inspection, target)
    return list(_warnings(inspection, dataset, spec, judge))


def gate_samples_of(
    spec: Spec, dataset: DatasetInspection | None, judge: DatasetInspection | None, *, inputs: Sequence[str] = ()
) -> list[GateSamples]:
    """Say how many samples the spec's gates on quality take, and how many judge; nothing without data."""
    if dataset is None:
        return []
    return gate_samples(spec.gates, part_sizes(dataset, judge, inputs=inputs).judge)


def check_data(
    dataset: DatasetInspection | None,
    spec: Spec,
    *,
    has_baseline: bool = False,
    judge: DatasetInspection | None = None,
    inputs: Sequence[str] | None = None,
) -> None:
    """Check what can be checked while the network is not there yet; `inputs` are its inputs' names once they are known.

    Raises:
        DatasetInvalidError: the data cannot be parted.
        SpecInvalidError: the spec asks for what these data cannot give.
    """
    if judge is not None and dataset is None:
        raise SpecInvalidError(
            "The job names a dataset that judges, but none to calibrate and choose with.",
            hint="Name it as `dataset`; where a job has one dataset, part of it judges.",
        )
    if inputs is None and dataset is not None and dataset.declared is not None and dataset.declared.problem:
        # What says nothing of parts may still be an input.
        inputs = [PART]
    sizes = part_sizes(dataset, judge, inputs=inputs or ()) if dataset is not None else None
    match spec:
        case Profile():
            _check_comparisons(spec, has_baseline=has_baseline)
        case Compress():
            _check_steps(spec, sizes)
        case Search():
            _check_choice(sizes)
        case _:
            assert_never(spec)
    _check_gates(judge or dataset, sizes, spec.gates)


def _check_steps(spec: Compress, sizes: Sizes | None) -> None:
    for index, step in enumerate(spec.recipe.passes):
        if step.needs_data and sizes is None:
            raise SpecInvalidError(
                f"Step {index} ({step.type}) needs calibration data, but the job names no dataset.", step=index
            )
    _check_choice(sizes)


def _check_choice(sizes: Sizes | None) -> None:
    """Raise DatasetInvalidError where there are too few samples to choose or to judge by."""
    few = None if sizes is None else next((name for name in ("select", "judge") if getattr(sizes, name) < 2), None)
    if few is not None:
        raise DatasetInvalidError(
            f"The part of the data called {few} has fewer than two samples; it needs at least two."
        )


def check_arrays(inspection: Inspection, dataset: DatasetInspection) -> None:
    """Raise DatasetInvalidError unless every input has an array of a type and shape that it takes, or needs none."""
    # What lies beyond a sample's length is never fed.
    cut = length_arrays({array.name: array for array in dataset.arrays}, inspection.inputs)
    dataset = _as_fed(inspection, dataset)
    arrays = {array.name: array for array in dataset.arrays}
    wanted = {tensor.name: tensor for tensor in inspection.inputs}
    follows = follow(inspection.inputs, arrays.keys())
    missing = sorted(set(wanted) - set(arrays) - follows)
    spare = sorted(set(arrays) - set(wanted) - {PART})
    if missing or spare:
        raise DatasetInvalidError(
            "The dataset's arrays must be named as the network's inputs"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not an input: {', '.join(spare)}" if spare else "")
            + ".",
            hint=f"The network's inputs are {', '.join(wanted)}; labels go into an array called `label`.",
        )
    axes = _axes(inspection, dataset)
    alone = are_alone(axes)
    _refuse_other_layout(inspection, arrays, axes)
    for name in sorted(set(wanted) & set(arrays), key=list(wanted).index):
        _check_array(arrays[name], wanted[name], axes[name], alone=alone)
        if name not in cut:
            _check_rows(arrays[name], inspection.tables.get(name))


def _check_rows(array: ArrayInfo, rows: int | None) -> None:
    """Raise DatasetInvalidError where numbers are looked up that the network's table does not have."""
    if rows is None or array.low is None or array.high is None or -rows <= array.low <= array.high < rows:
        return
    beyond = array.high if array.high >= rows else array.low
    raise DatasetInvalidError(
        f"Array `{array.name}` holds {beyond:.0f}, but the network looks it up in a table of {rows} rows, 0 to {rows - 1}.",
        hint="Take the tokenizer, or the numbering, that the network was trained with.",
    )


def _as_fed(inspection: Inspection, dataset: DatasetInspection) -> DatasetInspection:
    """Describe a dataset with what is made of it: samples cut to their lengths, and states that it does not have."""
    arrays = {array.name: array for array in dataset.arrays}
    arrays = cut_arrays(arrays, length_arrays(arrays, inspection.inputs), dataset.samples)
    for name, state in _states(inspection, arrays).items():
        if state is None:
            tensor = next(each for each in inspection.inputs if each.name == name)
            raise DatasetInvalidError(
                f"The dataset has no array for the input `{name}`, and how large that is at the first step is not known:"
                f" {_shape(tensor)}.",
                hint=f"Add an array `{name}`: the samples first, then what one sample has there; where there is nothing yet,"
                " zeros, or no positions.",
            )
        arrays[name] = state.described(dataset.samples)
    return dataset.model_copy(update={"arrays": tuple(arrays.values())})


def _states(inspection: Inspection, given: Collection[str]) -> dict[str, InitialState | None]:
    """Give the states that a dataset does not have; what follows from a decoder's tokens is made of them."""
    known = {*given, *follow(inspection.inputs, given)}
    return initial_states(inspection.inputs, known, inspection.outputs)


def _refuse_other_layout(
    inspection: Inspection, arrays: Mapping[str, ArrayInfo], axes: Mapping[str, int | None]
) -> None:
    """Raise DatasetInvalidError for images with their channels at the other end than the network has them."""
    for tensor in (each for each in inspection.inputs if each.name in arrays):
        size, wanted = arrays[tensor.name].shape, tensor.shape
        if wanted is None or len(wanted) != 4 or len(size) != 4 or axes[tensor.name] != 0:
            continue
        for moved, names, order in (((0, 3, 1, 2), "last", "first"), ((0, 2, 3, 1), "first", "last")):
            turned = [size[axis] for axis in moved]
            if not _takes(wanted, size) and _takes(wanted, turned):
                raise DatasetInvalidError(
                    f"Array `{tensor.name}` is {[*size]}, with the channels {names} as it seems; the network takes them"
                    f" {order}: {_shape(tensor)}.",
                    hint=f"Turn the axes: {tensor.name}.transpose{moved}.",
                )


def _takes(wanted: Sequence[int | str | None], size: Sequence[int | None]) -> bool:
    return all(not isinstance(one, int) or one == other for one, other in zip(wanted[1:], size[1:], strict=True))


def can_cast(array: str, wanted: str) -> bool:
    """Say whether an array may be cast by value: numbers to float, integers to wider integers, equal to equal."""
    if array == wanted:
        return True
    if wanted in _FLOATS:
        return array in (*_FLOATS, *_UNSIGNED, *_SIGNED, "bool")
    if array == "bool":
        return wanted in (*_UNSIGNED, *_SIGNED)
    for family in (_UNSIGNED, _SIGNED):
        if array in family and wanted in family:
            return family.index(array) < family.index(wanted)
    if array in _UNSIGNED and wanted in _SIGNED:
        return _UNSIGNED.index(array) < _SIGNED.index(wanted)
    return False


def misfit(array: ArrayInfo, wanted: str) -> str | None:
    """Say which number of an array a type does not hold, None where it holds all: then it may be cast to that, by value.

    An array that was described before its numbers were looked at gets the benefit of the doubt; the job looks at them.
    """
    if can_cast(array.dtype, wanted):
        return array.misfits.get(wanted) if array.dtype != wanted else None
    if wanted not in (*_UNSIGNED, *_SIGNED, "bool"):
        return "a number of any kind"
    return array.misfits.get("integers") or array.misfits.get(wanted)


def _axes(inspection: Inspection, dataset: DatasetInspection | None) -> dict[str, int | None]:
    shapes = {tensor.name: tensor.shape for tensor in inspection.inputs}
    if dataset is None:
        return batch_axes(shapes)
    ranks = {name: len(shape or ()) for name, shape in shapes.items()}
    fed = _as_fed(inspection, dataset)
    return sample_axes(shapes, ranks | {array.name: len(array.shape) for array in fed.arrays})


def _check_array(array: ArrayInfo, tensor: TensorInfo, axis: int | None, *, alone: bool) -> None:
    wrong = misfit(array, tensor.dtype)
    if wrong is not None:
        raise DatasetInvalidError(
            f"Array `{array.name}` is {array.dtype}, the network's input is {tensor.dtype}, which does not hold {wrong}.",
            hint="Arrays are cast by value, never scaled or rounded, so every number has to be one of the input's type.",
        )
    if tensor.shape is None:
        return
    # What each sample fills of the input.
    filled = [size for at, size in enumerate(tensor.shape) if at != axis]
    if len(array.shape) != len(filled) + 1:
        stands = "" if axis is None else f" it stands where the network's batch axis ({axis}) is, or"
        raise DatasetInvalidError(
            f"Array `{array.name}` has {len(array.shape)} axes {list(array.shape)}, but the network's input has"
            f" {len(tensor.shape)}: {_shape(tensor)}.",
            hint=f"The first axis counts the samples;{stands} it comes before all of the input's.",
        )
    if not alone and None in array.shape and isinstance(tensor.shape[0], int) and tensor.shape[0] != 1:
        raise DatasetInvalidError(
            f"Array `{array.name}` varies from sample to sample, but the network takes {tensor.shape[0]} at a time."
        )
    for at, (size, wanted) in enumerate(zip(array.shape[1:], filled, strict=True), 1):
        if isinstance(wanted, int) and size != wanted:
            raise DatasetInvalidError(
                f"Array `{array.name}` has {'varying sizes' if size is None else f'size {size}'} on axis {at},"
                f" but the network's input is {_shape(tensor)}."
            )


def _check_passes(inspection: Inspection, spec: Compress) -> None:
    for index, step in enumerate(spec.recipe.passes):
        refusal = step.requires(inspection)
        if refusal is not None:
            raise SpecInvalidError(
                f"Step {index} ({step.type}): {refusal.reason}", node=refusal.node, step=index, hint=refusal.hint
            )


def _check_comparisons(spec: Profile, *, has_baseline: bool) -> None:
    for gate in spec.gates:
        compares = gate.rule in {"max_ratio", "max_drop"} or gate.metric in FIDELITY_METRICS
        if compares and not has_baseline:
            raise SpecInvalidError(
                f"The gate on {gate.metric} ({gate.rule}) compares with a baseline, but the job names none.",
                hint="Name the network to compare with as `baseline`, or give the gate a limit of its own (`max`, `min`).",
            )


def _check_same_inputs(role: str, network: Inspection, inspection: Inspection) -> None:
    """Raise SpecInvalidError unless both networks take the same feeds."""
    ours, theirs = ({tensor.name: tensor for tensor in each.inputs} for each in (inspection, network))
    if set(ours) != set(theirs):
        raise SpecInvalidError(
            f"The {role}'s inputs are {', '.join(theirs)}, the network's {', '.join(ours)}: they do not take the same data."
        )
    for name, tensor in ours.items():
        if not _alike(tensor, theirs[name]):
            raise SpecInvalidError(
                f"Input `{name}` is {_told(theirs[name])} in the {role} and {_told(tensor)} in the network: they do not take the"
                " same data."
            )


def _check_learning(inspection: Inspection, spec: Spec, networks: Mapping[str, Inspection | None]) -> None:
    """Raise SpecInvalidError for a student or teacher that no step is for, or that is about something else than the network."""
    as_it_is = isinstance(spec, Compress) and spec.student_as_it_is
    if as_it_is and networks["student"] is None:
        raise SpecInvalidError("The job says `student_as_it_is`, but names no student.")
    for role, network in networks.items():
        if network is None:
            continue
        teaches = isinstance(spec, Compress) and any(step.learns for step in spec.recipe.passes)
        if not teaches and not (as_it_is and role == "student"):
            raise SpecInvalidError(
                f"The job names a {role}, but "
                + (
                    "a search teaches its candidates itself."
                    if isinstance(spec, Search)
                    else "no step of its recipe teaches."
                ),
                hint=f"Leave the {role} out, or give a recipe with `distill` in it.",
            )
        _check_same_inputs(role, network, inspection)
        _check_open_batch(role, network, inspection)
        _check_same_outputs(role, network, inspection)


def _check_open_batch(role: str, network: Inspection, inspection: Inspection) -> None:
    theirs = {tensor.name: tensor for tensor in network.inputs}
    for tensor in inspection.inputs:
        other = theirs[tensor.name]
        if tensor.shape and other.shape and not isinstance(tensor.shape[0], int) and isinstance(other.shape[0], int):
            raise SpecInvalidError(
                f"Input `{tensor.name}` takes any number of samples in the network, but {other.shape[0]} in the {role}:"
                f" {_shape(other)}.",
                hint=f"Export the {role} with an open first axis.",
            )


def _check_same_outputs(role: str, network: Inspection, inspection: Inspection) -> None:
    ours, theirs = ({tensor.name: tensor for tensor in each.outputs} for each in (inspection, network))
    hint = f"A {role} gives what the network gives: the same outputs by name, type and size. Export it so."
    if set(ours) != set(theirs):
        raise SpecInvalidError(
            f"The {role}'s outputs are {', '.join(theirs)}, the network's {', '.join(ours)}.", hint=hint
        )
    for name, tensor in ours.items():
        if not _alike(tensor, theirs[name]):
            raise SpecInvalidError(
                f"Output `{name}` is {_told(theirs[name])} in the {role} and {_told(tensor)} in the network.", hint=hint
            )


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    """Say whether both are of one kind of numbers, and may have the same shape."""
    return (one.dtype == other.dtype or {one.dtype, other.dtype} <= set(_FLOATS)) and _overlap(one, other)


def _overlap(one: TensorInfo, other: TensorInfo) -> bool:
    """Say whether there is a shape that both take."""
    if one.shape is None or other.shape is None:
        return True
    return len(one.shape) == len(other.shape) and all(
        left == right or not (isinstance(left, int) and isinstance(right, int))
        for left, right in zip(one.shape, other.shape, strict=True)
    )


def _check_gates(judge: DatasetInspection | None, sizes: Sizes | None, gates: Sequence[Gate]) -> None:
    """Check that what judges can answer the gates on quality."""
    for gate in gates:
        if gate.metric in TASK_METRICS:
            if judge is None or sizes is None or sizes.judge_labelled == 0:
                raise SpecInvalidError(
                    f"The gate on {gate.metric} needs labels, but the job's data that judge have none.",
                    hint="Put an array `label` into the dataset, or gate a fidelity metric such as top1_agreement.",
                )
            if judge.metric != MEASURED_WITH.get(gate.metric, gate.metric):
                raise SpecInvalidError(
                    f"The gate is on {gate.metric}, but the dataset's metric is {judge.metric or 'not declared'}.",
                    hint="Declare the metric of the labels when the dataset is uploaded.",
                )
        elif gate.metric in FIDELITY_METRICS and judge is None:
            raise SpecInvalidError(f"The gate on {gate.metric} needs data, but the job names no dataset.")
        _refuse_unreachable(gate)


def _refuse_unreachable(gate: Gate) -> None:
    """Raise SpecInvalidError for a limit on a share of samples that no network holds."""
    if gate.metric in SHARES and gate.rule == "min" and gate.value > 1:
        raise SpecInvalidError(
            f"The gate on {gate.label} asks for {100 * gate.value:g} %, which no network reaches.", hint=_as_share(gate)
        )


def _as_share(gate: Gate) -> str:
    return f"Shares are from 0 to 1: {min(gate.value, 100):g} % is {min(gate.value, 100) / 100:g}."


def _check_outputs(inspection: Inspection, spec: Spec, declared: Mapping[str, OutputDeclaration]) -> None:
    """Raise SpecInvalidError where outputs are named that the network has not, or cannot be asked what a gate asks."""
    names = [tensor.name for tensor in inspection.outputs]
    told = f"the network's outputs are {', '.join(names)}."
    for name in declared:
        if name not in names:
            where = "outputs" if name in spec.outputs else "The dataset's declaration"
            raise SpecInvalidError(f"{where} names `{name}`, which is not an output; {told}")
    if names and all(name in declared and declared[name].ignore for name in names):
        raise SpecInvalidError("All outputs are to be ignored, so that nothing is left to judge.")
    for gate in spec.gates:
        if gate.output is None:
            continue
        if gate.output not in names:
            raise SpecInvalidError(f"The gate on {gate.label} names an output that there is not; {told}")
        said = declared.get(gate.output)
        if said is not None and said.ignore:
            raise SpecInvalidError(f"The gate is on {gate.label}, but that output is declared as one to ignore.")
        if said is not None and said.kind is not None:
            known = (*KIND_METRICS[said.kind], *KIND_TASKS[said.kind])
            if gate.metric not in known:
                raise SpecInvalidError(
                    f"The gate is on {gate.label}, but the output is declared as {said.kind}, which has no {gate.metric}.",
                    hint=f"What such an output has is {', '.join(known)}.",
                )


def _check_shapes(inspection: Inspection, target: Target) -> None:
    inputs = {tensor.name: tensor for tensor in inspection.inputs}
    for name, shape in target.shapes.items():
        if name not in inputs:
            raise SpecInvalidError(
                f"target.shapes names `{name}`, which is not an input; the inputs are {', '.join(inputs)}."
            )
        wanted = inputs[name].shape
        if wanted is not None and (
            len(shape) != len(wanted)
            or any(isinstance(size, int) and size != given for size, given in zip(wanted, shape, strict=True))
        ):
            raise SpecInvalidError(
                f"target.shapes gives {list(shape)} for `{name}`, but the network's input is {_shape(inputs[name])}."
            )


def _warnings(
    inspection: Inspection, dataset: DatasetInspection | None, spec: Spec, judge: DatasetInspection | None
) -> Iterator[str]:
    yield from inspection.warnings
    if dataset is None:
        sizes = None
        yield _WITHOUT_DATA[spec.kind]
    else:
        sizes = part_sizes(dataset, judge, inputs=[tensor.name for tensor in inspection.inputs])
        arrays = {array.name for array in dataset.arrays}
        yield from told(_states(inspection, arrays))
        yield from _warnings_of_labels(judge or dataset, sizes)
        yield from _warnings_of_parts(sizes, spec)
    axes = _axes(inspection, dataset)
    if isinstance(spec, Compress):
        for each in spec.recipe.left_out:
            yield f"Without {each.type}, which the recipe `{spec.recipe.name}` has: {each.reason}."
        yield from _skipped(spec, 0 if sizes is None else sizes.select, _fixed_size(inspection, axes))
    if are_alone(axes):
        odd = ", ".join(name for name, axis in axes.items() if axis != 0)
        yield f"Samples are fed one at a time, as they are: the first axis of {odd} does not count samples."
        return
    fixed = [
        tensor.name
        for tensor in inspection.inputs
        if tensor.shape
        and isinstance(tensor.shape[0], int)
        and {tensor.shape[0]} != {target.batch for target in targets_of(spec)}
    ]
    if fixed:
        yield f"Input {', '.join(fixed)} has a fixed batch size; latency is measured at that size."


def _skipped(spec: Compress, samples: int, fixed: int | None) -> Iterator[str]:
    for index, step in enumerate(spec.recipe.passes):
        skips = step.skips(samples, fixed)
        if skips is not None:
            yield f"Step {index} ({step.type}): {skips}."


def _fixed_size(inspection: Inspection, axes: Mapping[str, int | None]) -> int | None:
    return 1 if are_alone(axes) else run_size([tensor.shape for tensor in inspection.inputs], None)


def _warnings_of_labels(judging: DatasetInspection, sizes: Sizes) -> Iterator[str]:
    """Say so where labels are of no use, for nobody said what they are for."""
    label = judging.label
    if label is not None and sizes.judge_labelled and judging.metric is None:
        shape = ", ".join("?" if size is None else str(size) for size in label.shape)
        yield (
            f"The dataset has labels ({label.dtype} [{shape}]), but no metric is declared for them, so that they are not used:"
            " quality is fidelity to the original. Declare the metric when the dataset is uploaded."
        )


def _warnings_of_parts(sizes: Sizes, spec: Spec) -> Iterator[str]:
    for gate in spec.gates:
        few = too_few(gate, sizes.judge)
        if few is not None:
            yield few
        if gate.metric in SHARES and gate.rule == "max_drop" and gate.value >= 1:
            lost = f"The gate on {gate.label} allows a loss of {100 * gate.value:g} points, which nothing can exceed."
            yield f"{lost} {_as_share(gate)}"
    if sizes.judge_labelled == 0:
        yield "The data that judge have no labels: quality is fidelity to the original, not accuracy."
    elif sizes.judge_labelled < _FEW_JUDGED:
        yield (
            f"{sizes.judge_labelled} labelled samples to judge on are few: a change in accuracy below 1 point cannot be told"
            " from chance."
        )
    if sizes.select_is_judge and makes_network(spec):
        yield (
            f"Steps are chosen and the result is judged on the same {sizes.judge} samples, so its figures may look better"
            f" than they are: {sizes.reason}."
        )


def _told(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} {_shape(tensor)}"


def _shape(tensor: TensorInfo) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in tensor.shape or ()) + "]"
