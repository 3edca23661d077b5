"""What the graph says of how an output is made, also where the last operators stand in branches of If."""

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.graph.endings import endings

RATES = {"then_branch": "Squeeze", "else_branch": "Identity"}


def branch(name, nodes, output):
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [made])


def network(*, last, inside):
    """A score that branches of If move or make, and `last` behind it."""
    branches = {
        name: branch(name, [helper.make_node(op, ["scores"], [f"{name}_y"])], f"{name}_y")
        for name, op in inside.items()
    }
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["scores"]),
        helper.make_node("If", ["fast"], ["chosen"], **branches),
        helper.make_node(last, ["chosen"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4]),
            helper.make_tensor_value_info("fast", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.from_proto(model)


@pytest.mark.parametrize(
    ("last", "inside", "op", "mean"),
    [
        ("Identity", RATES, "Sigmoid", False),
        ("ReduceMean", RATES, "ReduceMean", True),
        ("ReduceMax", RATES, "ReduceMax", True),
        # Where branches make it in two ways, the graph says nothing.
        ("Identity", {"then_branch": "Neg", "else_branch": "Identity"}, "If", False),
        ("ReduceMean", {"then_branch": "Neg", "else_branch": "Neg"}, "ReduceMean", False),
    ],
)
def test_branches_that_only_move_numbers_are_looked_behind(last, inside, op, mean):
    ending = endings(network(last=last, inside=inside))["y"]
    assert (ending.op, ending.mean_of_sigmoid) == (op, mean)


def encoder():
    """Hidden states, their masked mean in a list of one, the ids cast, and a table that they are looked up in."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("ReduceSum", ["positive"], ["sum"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Concat", ["mean"], ["pooled"], axis=0),
        helper.make_node("Cast", ["ids"], ["same_ids"], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 4]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("same_ids", TensorProto.INT32, None),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor("table", TensorProto.FLOAT, [5, 2], [0.5] * 10)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_inputs_that_are_passed_on_are_told_from_tables_and_a_list_of_one_is_looked_behind():
    found = endings(encoder())
    assert {name: ending.passed_on for name, ending in found.items()} == {
        "same_ids": True,
        "hidden": False,
        "pooled": False,
    }
    assert (found["pooled"].op, found["pooled"].pooled) == ("Div", True)
