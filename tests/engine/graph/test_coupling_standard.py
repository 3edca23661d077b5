"""The examples that the ONNX standard gives of each operator, fed by layers whose channels could go.

A rule may say that it cannot follow labels. It may not fail: whatever else it raises is a fault of ours, and shows here.
What it lets go must leave the network computing what the network with these channels silenced computes.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference.ops import op_pool_common

from engine.errors import EngineError
from engine.graph.coupling import analyse
from engine.graph.masking import mask
from engine.graph.rules.catalogue import RULES
from engine.graph.slicing import remove
from engine.runtime.sessions import session
from engine.target import Target


def _empty_pool(padded, x_shape, _kernel, _strides, out_shape, *_rest, **_more):
    return np.zeros((*x_shape[:2], *out_shape), padded.dtype)


@pytest.fixture(scope="module")
def examples():
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # Its loops over pixels take most of the time, for outputs of which only the shape counts here.
        patch.setattr(op_pool_common, "pool", _empty_pool)
        # Its generators divide by zero on purpose.
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    known = {name for _, name in RULES}
    return [
        case for case in cases if case.data_sets and known.intersection(node.op_type for node in case.model.graph.node)
    ]


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def _layer(graph: onnx.GraphProto, source: str, result: str, width: int, rank: int, axis: int) -> onnx.NodeProto:
    weight = np.random.default_rng(width).uniform(0.2, 1.0, (width, width)).astype(np.float32)
    if axis == 1:
        weight = weight.reshape(width, width, *[1] * (rank - 2))
    graph.initializer.append(numpy_helper.from_array(weight, f"{result}_weight"))
    kind = "Conv" if axis == 1 else "MatMul"
    return helper.make_node(kind, [source, f"{result}_weight"], [result], name=f"{result}_layer")


def _has_channels(value: onnx.ValueInfoProto, axis: int) -> bool:
    sizes = _sizes(value)
    floats = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return floats and len(sizes) >= (3 if axis == 1 else 2) and sizes[axis] > 1


def _between_layers(case, axis: int, constants: bool) -> onnx.ModelProto | None:
    """Put layers before and behind whatever has channels on `axis`; `constants`: other inputs become weights."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    graph = proto.graph
    nodes, inputs, outputs = list(graph.node), list(graph.input), list(graph.output)
    before, behind = [], []
    del graph.node[:], graph.input[:], graph.output[:]
    for value, array in zip(inputs, case.data_sets[0][0], strict=True):
        if _has_channels(value, axis):
            sizes, source = _sizes(value), f"{value.name}_source"
            before.append(_layer(graph, source, value.name, sizes[axis], len(sizes), axis))
            graph.input.append(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, sizes))
        elif constants and isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
            graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            graph.input.append(value)
    for value in outputs:
        graph.value_info.append(value)
        given = onnx.ValueInfoProto()
        given.CopyFrom(value)
        given.name = f"{value.name}_read"
        graph.output.append(given)
        if _has_channels(value, axis):
            sizes = _sizes(value)
            behind.append(_layer(graph, value.name, given.name, sizes[axis], len(sizes), axis))
        else:
            behind.append(helper.make_node("Identity", [value.name], [given.name]))
    graph.node.extend([*before, *nodes, *behind])
    return proto if before else None


def _open_sizes(proto: onnx.ModelProto) -> None:
    """Leave every size but the channels' open, under names that the values do not share."""
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        for place, size in enumerate(value.type.tensor_type.shape.dim):
            if place != 1:
                size.dim_param = f"{value.name}_{place}"


def _networks(cases) -> Iterator[tuple]:
    """Give each example between layers, and whether its sizes are known.

    In turn as it is, along the last axis, and with sizes and operands left open.
    """
    variants = [(1, True, False), (-1, True, False), (1, False, True)]
    for number, case in enumerate(cases):
        for place in (number, number + 1, number + 2):
            axis, constants, opened = variants[place % 3]
            proto = _between_layers(case, axis, constants)
            if proto is not None:
                if opened:
                    _open_sizes(proto)
                yield case, proto, not opened
                break


def _outputs(model: onnx.ModelProto, case) -> dict[str, np.ndarray]:
    arrays = dict(zip([value.name for value in case.model.graph.input], case.data_sets[0][0], strict=True))
    feed = {value.name: arrays[value.name.removesuffix("_source")] for value in model.graph.input}
    opened = session(model.SerializeToString(), Target(provider="cpu", threads=1), optimise=False)
    found = opened.run(feed)
    return {
        name: array for name, array in found.items() if isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
    }


def _half(coupling) -> set[int]:
    atoms: set[int] = set()
    for group in coupling.groups:
        scores = {atom: float((atom * 7919) % 101) for atom in group.atoms}
        count = max(1, len(coupling.units(group)) // 2)
        atoms.update(atom for unit in coupling.choose(group, count, scores, atoms) for atom in unit.atoms)
    return atoms


def _check(case, proto: onnx.ModelProto, known: bool) -> bool:
    """Analyse, and cut where something can go and ONNX Runtime knows the operator; say whether something was cut."""
    # Newer than the runtime's.
    proto.ir_version = min(proto.ir_version, 10)
    model = ir.from_proto(proto)
    coupling = analyse(model)
    atoms = _half(coupling)
    if not atoms or not known:
        return False
    try:
        _outputs(proto, case)
    except EngineError:
        return False
    pruned, masked = remove(model, coupling, atoms), mask(model, coupling, atoms)
    expected, found = _outputs(ir.to_proto(masked), case), _outputs(ir.to_proto(pruned), case)
    for name, array in expected.items():
        if not np.isfinite(array).all():
            continue  # NaN times zero is no zero
        scale = float(np.abs(array.astype(np.float64)).max(initial=1e-6))
        np.testing.assert_allclose(found[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=1e-4 * scale)
    return True


# test_coupling_zoo.py and test_coupling_random.py hold the rules against whole networks at every run.
@pytest.mark.soak
def test_no_rule_fails_on_the_standard_s_own_examples_and_what_goes_may_go(examples):
    count = cut = 0
    failures = []
    for case, proto, known in _networks(examples):
        count += 1
        try:
            cut += _check(case, proto, known)
        except Exception as error:  # noqa: BLE001 every example is named
            failures.append((case.name, repr(error)))
    assert failures == []
    assert count > 500
    assert cut > 250
