"""Patterns of several nodes that run as one kernel: the same values and gradients, and nothing lost that somebody reads."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.train.twin.module import Twin
from tests.engine.train.test_network_parity import outputs_of

ROOT, HALF_ROOT, ONE, HALF, TWO = (
    numpy_helper.from_array(np.array(value, np.float32), name)
    for name, value in (("root", 2**0.5), ("half_root", 0.5**0.5), ("one", 1), ("half", 0.5), ("two", 2))
)
ERF = [helper.make_node("Erf", ["scaled"], ["erf"]), helper.make_node("Add", ["erf", "one"], ["plus"])]
DIVIDED = helper.make_node("Div", ["x", "root"], ["scaled"])
FORMS = {
    "half of the sum": [
        DIVIDED, *ERF, helper.make_node("Mul", ["half", "plus"], ["m"]), helper.make_node("Mul", ["x", "m"], ["y"])
    ],
    "half of the product": [
        DIVIDED, *ERF, helper.make_node("Mul", ["x", "plus"], ["m"]), helper.make_node("Mul", ["m", "half"], ["y"])
    ],
    "half of x": [
        helper.make_node("Mul", ["x", "half"], ["h"]),
        helper.make_node("Mul", ["half_root", "x"], ["scaled"]), *ERF, helper.make_node("Mul", ["h", "plus"], ["y"]),
    ],
    "x divided by two": [
        helper.make_node("Div", ["x", "two"], ["h"]), DIVIDED, *ERF, helper.make_node("Mul", ["plus", "h"], ["y"])
    ],
    "no half": [DIVIDED, *ERF, helper.make_node("Mul", ["x", "plus"], ["m"]), helper.make_node("Mul", ["m", "two"], ["y"])],
    "another x": [
        DIVIDED, *ERF, helper.make_node("Mul", ["half", "plus"], ["m"]), helper.make_node("Mul", ["root", "m"], ["y"])
    ],
    "no root of two": [
        helper.make_node("Div", ["x", "two"], ["scaled"]),
        *ERF, helper.make_node("Mul", ["half", "plus"], ["m"]), helper.make_node("Mul", ["x", "m"], ["y"])
    ],
}  # fmt: skip
GELUS = ["half of the sum", "half of the product", "half of x", "x divided by two"]
X = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)


def twin_of(form):
    graph = helper.make_graph(
        FORMS[form],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        [ROOT, HALF_ROOT, ONE, HALF, TWO],
    )
    return Twin.of(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)))


def ran(twin, wanted):
    """Values and gradients with the kinds of nodes that ran."""
    kinds = []
    apply = twin._apply
    twin._apply = lambda node, values: (kinds.append(node.op_type), apply(node, values))[1]
    x = twin.feed({"x": X})["x"].requires_grad_()
    found = twin.run({"x": x}, wanted)
    (slope,) = torch.autograd.grad(found["y"].sum(), x)
    return found, slope, kinds


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_single_nodes(form):
    fused, slope, kinds = ran(twin_of(form), ["y"])
    single, expected, nodes = ran(twin_of(form), ["y", "erf", "plus"])
    assert ("Gelu" in kinds) == (form in GELUS)
    assert "Gelu" not in nodes
    torch.testing.assert_close(fused["y"], single["y"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", GELUS)
def test_one_kernel_takes_the_place_of_all_nodes(form):
    _, _, kinds = ran(twin_of(form), ["y"])
    assert kinds == ["Gelu"]


def test_a_constant_that_a_feed_replaces_is_none():
    twin = twin_of("half of the sum")
    with torch.no_grad():
        found = twin.run({**twin.feed({"x": X}), "half": torch.tensor(5.0)}, ["y"])["y"]
        once = twin.run(twin.feed({"x": X}), ["y"])["y"]
    torch.testing.assert_close(found, 10 * once)


def test_constants_that_are_trained_stay_nodes():
    graph = helper.make_graph(
        FORMS["half of the sum"],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        [ROOT, ONE, HALF],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    twin = Twin.of(model, trainable=["half"])
    twin.run(twin.feed({"x": X}))["y"].sum().backward()
    assert twin.parameters["half"].grad is not None


RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((3, 4, 8)).astype(np.float32)


def network(nodes, numbers, opset=17):
    """Nodes written as "Mul a b -> c"; numbers are initializers."""
    made = []
    for line in nodes:
        left, result = line.split(" -> ")
        kind, *inputs = left.split()
        attributes = {"axes": [-1]} if kind == "ReduceMean" else {}
        made.append(helper.make_node(kind, inputs, [result], f"node_{result}", **attributes))
    graph = helper.make_graph(
        made,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


CUBE = {"three": 3, "small": 0.044715, "root": np.sqrt(2 / np.pi), "one": 1, "half": 0.5}
NORM = {"two": 2, "epsilon": 1e-5, "scale": RANDOM.uniform(0.5, 1.5, 8), "bias": RANDOM.standard_normal(8)}
CHAINS = {
    "gelu_by_tanh": (
        [
            "Pow x three -> p",
            "Mul p small -> q",
            "Add x q -> r",
            "Mul r root -> s",
            "Tanh s -> t",
            "Add t one -> c",
            "Mul x half -> h",
            "Mul h c -> y",
        ],
        CUBE,
        "Gelu",
    ),
    "layer_norm": (
        [
            "ReduceMean x -> m",
            "Sub x m -> c",
            "Pow c two -> p",
            "ReduceMean p -> v",
            "Add v epsilon -> e",
            "Sqrt e -> r",
            "Div c r -> n",
            "Mul n scale -> s",
            "Add s bias -> y",
        ],
        NORM,
        "LayerNormalization",
    ),
}


def kinds(twin, wanted):
    return [step.node.op_type for step in twin._plan(twin.graph, frozenset({"x"}), tuple(wanted))]


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_runs_as_one_node(name):
    nodes, numbers, kind = CHAINS[name]
    model = network(nodes, numbers)
    twin = Twin.of(ir.from_proto(model), dtype=torch.float64)
    assert kinds(twin, ["y"]) == [kind]
    x = torch.from_numpy(ROWS).double().requires_grad_()
    y = twin.run({"x": x})["y"]
    np.testing.assert_allclose(y.detach(), outputs_of(model, {"x": ROWS})["y"], rtol=1e-5, atol=1e-5)
    apart = twin.run({"x": x}, ["y", "c"])["y"]
    assert len(kinds(twin, ["y", "c"])) == len(nodes)
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), x), torch.autograd.grad(apart.sin().sum(), x))


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_somebody_reads_from_or_that_is_another_stays(name):
    nodes, numbers, kind = CHAINS[name]
    read = network([*(line.replace("-> y", "-> z") for line in nodes), "Add z c -> y"], numbers)
    assert kind not in kinds(Twin.of(ir.from_proto(read)), ["y"])
    changed = {key: value * 1.1 if key in {"root", "two"} else value for key, value in numbers.items()}
    other = Twin.of(ir.from_proto(network(nodes, changed)))
    assert kind not in kinds(other, ["y"])
