"""Whether a network, a dataset and a spec fit together, told from stored inspections alone: no file is opened."""

from collections.abc import Iterator

from engine.errors import DatasetInvalidError, SpecInvalidError
from engine.inspection import ArrayInfo, DatasetInspection, Inspection, TensorInfo
from engine.spec import FIDELITY_METRICS, TASK_METRICS, Compress

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
_SIGNED = ("int8", "int16", "int32", "int64")


def check_fit(inspection: Inspection, dataset: DatasetInspection | None, spec: Compress) -> list[str]:
    """Give warnings about a job before it runs.

    Raises DatasetInvalidError where the data do not fit the network, SpecInvalidError where the spec asks for what this
    network and data cannot give.
    """
    if dataset is not None:
        check_arrays(inspection, dataset)
    check_data(dataset, spec)
    _check_passes(inspection, spec)
    _check_shapes(inspection, spec)
    return list(_warnings(inspection, dataset, spec))


def check_data(dataset: DatasetInspection | None, spec: Compress) -> None:
    """Check what can be checked while the network is not there yet; raises SpecInvalidError."""
    for index, step in enumerate(spec.recipe.passes):
        if step.needs_data and dataset is None:
            raise SpecInvalidError(
                f"Step {index} ({step.type}) needs calibration data, but the job names no dataset.", step=index
            )
    _check_gates(dataset, spec)


def check_arrays(inspection: Inspection, dataset: DatasetInspection) -> None:
    """Raise DatasetInvalidError unless every input has an array of a type and shape that it takes."""
    arrays = {array.name: array for array in dataset.arrays}
    wanted = {tensor.name: tensor for tensor in inspection.inputs}
    missing = sorted(set(wanted) - set(arrays))
    spare = sorted(set(arrays) - set(wanted))
    if missing or spare:
        raise DatasetInvalidError(
            "The dataset's arrays must be named as the network's inputs"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not an input: {', '.join(spare)}" if spare else "")
            + ".",
            hint=f"The network's inputs are {', '.join(wanted)}; labels go into an array called `label`.",
        )
    for name, tensor in wanted.items():
        _check_array(arrays[name], tensor)


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


def _check_array(array: ArrayInfo, tensor: TensorInfo) -> None:
    if not can_cast(array.dtype, tensor.dtype):
        raise DatasetInvalidError(
            f"Array `{array.name}` is {array.dtype}, but the network's input is {tensor.dtype}.",
            hint="Integers are cast by value to float inputs, narrow integers to wider ones; nothing else is cast.",
        )
    if tensor.shape is None:
        return
    if len(array.shape) != len(tensor.shape):
        raise DatasetInvalidError(
            f"Array `{array.name}` has {len(array.shape)} axes {list(array.shape)}, but the network's input has"
            f" {len(tensor.shape)}: {_shape(tensor)}.",
            hint="The first axis counts the samples; it stands where the network's batch axis is.",
        )
    if None in array.shape and isinstance(tensor.shape[0], int) and tensor.shape[0] != 1:
        raise DatasetInvalidError(
            f"Array `{array.name}` varies from sample to sample, but the network takes {tensor.shape[0]} at a time."
        )
    for axis, (size, wanted) in enumerate(zip(array.shape, tensor.shape, strict=True)):
        if axis > 0 and isinstance(wanted, int) and size != wanted:
            raise DatasetInvalidError(
                f"Array `{array.name}` has {'varying sizes' if size is None else f'size {size}'} on axis {axis},"
                f" but the network's input is {_shape(tensor)}."
            )


def _check_passes(inspection: Inspection, spec: Compress) -> None:
    for index, step in enumerate(spec.recipe.passes):
        refusal = step.requires(inspection)
        if refusal is not None:
            raise SpecInvalidError(
                f"Step {index} ({step.type}): {refusal.reason}", node=refusal.node, step=index, hint=refusal.hint
            )


def _check_gates(dataset: DatasetInspection | None, spec: Compress) -> None:
    for gate in spec.gates:
        if gate.metric in TASK_METRICS:
            if dataset is None or dataset.labelled == 0:
                raise SpecInvalidError(
                    f"The gate on {gate.metric} needs labels, but the job's dataset has none.",
                    hint="Put an array `label` into the dataset, or gate a fidelity metric such as top1_agreement.",
                )
            if dataset.metric != gate.metric:
                raise SpecInvalidError(
                    f"The gate is on {gate.metric}, but the dataset's metric is {dataset.metric or 'not declared'}.",
                    hint="Declare the metric of the labels when the dataset is uploaded.",
                )
        elif gate.metric in FIDELITY_METRICS and dataset is None:
            raise SpecInvalidError(f"The gate on {gate.metric} needs data, but the job names no dataset.")


def _check_shapes(inspection: Inspection, spec: Compress) -> None:
    inputs = {tensor.name: tensor for tensor in inspection.inputs}
    for name, shape in spec.target.shapes.items():
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


def _warnings(inspection: Inspection, dataset: DatasetInspection | None, spec: Compress) -> Iterator[str]:
    yield from inspection.warnings
    if dataset is None:
        yield "Without a dataset, quality is judged on random inputs only."
    elif dataset.labelled == 0:
        yield "The dataset has no labels: quality is fidelity to the original, not accuracy."
    elif dataset.labelled < 300:
        yield f"{dataset.labelled} labelled samples are few: a change in accuracy below 1 point cannot be told from chance."
    fixed = [
        tensor.name
        for tensor in inspection.inputs
        if tensor.shape and isinstance(tensor.shape[0], int) and tensor.shape[0] != spec.target.batch
    ]
    if fixed:
        yield f"Input {', '.join(fixed)} has a fixed batch size; latency is measured at that size."


def _shape(tensor: TensorInfo) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in tensor.shape or ()) + "]"
