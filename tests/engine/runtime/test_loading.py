"""What a run gives lies in the session's memory; what is kept of it does not."""

import subprocess
import sys

# In a process of its own, whose memory nobody else uses. Each run needs 64 MiB and more, and gives one number.
SCRIPT = """
import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper
from engine.runtime.sessions import owned, session
from engine.target import Target

nodes = [
    helper.make_node("Expand", ["x", "shape"], ["wide"]),
    helper.make_node("Sin", ["wide"], ["waves"]),
    helper.make_node("ReduceMean", ["waves"], ["y"], keepdims=0),
]
graph = helper.make_graph(
    nodes,
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    [numpy_helper.from_array(np.array([4096, 4096], np.int64), "shape")],
)
network = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()

def resident():
    return psutil.Process().memory_info().rss

def said(x):
    return owned(session(network, Target()).run({"x": np.full((1, 1), x, np.float32)})["y"])

kept = [said(0.0)]
before = resident()
kept += [said(float(number)) for number in range(1, 5)]
assert resident() < before + (64 << 20), (before, resident())
assert np.allclose(kept, np.sin(np.arange(5)), rtol=1e-2)
"""


def test_a_number_that_is_kept_does_not_hold_what_its_run_has_needed():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)
