"""The examples that the ONNX standard gives of each operator, fed by layers whose channels could go.

A rule may say that it cannot follow labels. It may not fail: whatever else it raises is a fault of ours, and shows here.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from engine.graph.coupling import analyse
from engine.graph.rules.catalogue import RULES


@pytest.fixture(scope="module")
def examples():
    with warnings.catch_warnings():
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
    weight = np.eye(width, dtype=np.float32)
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


def _networks(cases) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Give each example between layers; in turn as it is, along the last axis, and with sizes and operands left open."""
    variants = [(1, True, False), (-1, True, False), (1, False, True)]
    for number, case in enumerate(cases):
        for place in (number, number + 1, number + 2):
            axis, constants, opened = variants[place % 3]
            proto = _between_layers(case, axis, constants)
            if proto is not None:
                if opened:
                    _open_sizes(proto)
                yield case.name, proto
                break


def test_no_rule_fails_on_the_standard_s_own_examples(examples):
    count = with_groups = 0
    failures = []
    for name, proto in _networks(examples):
        count += 1
        try:
            with_groups += bool(analyse(ir.from_proto(proto)).groups)
        except Exception as error:  # noqa: BLE001 every example is named
            failures.append((name, repr(error)))
    assert failures == []
    assert count > 500
    assert with_groups > 250
