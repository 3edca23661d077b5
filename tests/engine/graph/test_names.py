"""The names by which recipes speak of nodes."""

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.errors import SpecInvalidError
from engine.graph.names import require_nodes


def test_a_node_without_a_name_goes_by_its_first_output():
    nodes = [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("Relu", ["hidden"], ["y"], name="last")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = ir.from_proto(helper.make_model(graph))
    require_nodes(model, ["hidden", "last"])
    with pytest.raises(SpecInvalidError, match="does not have: y"):
        require_nodes(model, ["hidden", "y"])
