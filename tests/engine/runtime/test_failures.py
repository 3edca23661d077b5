"""What onnxruntime says ends in words for the network's owner: its own sentence, and nothing of this host or its sources."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.errors import EngineError
from engine.measure.latency import take_turns
from engine.measure.throughput import measure_throughput
from engine.runtime.failures import explain_load, explain_provider, explain_run, sentence
from engine.runtime.sessions import session
from engine.target import Target

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            (
                "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for output: y Got: 3 Expected: 2 Please fix either the"
                " inputs/outputs or the model."
            ),
            "Invalid rank for output: y Got: 3 Expected: 2 Please fix either the inputs/outputs or the model",
        ),
        ("Error in execution: Unexpected input data type.", "Unexpected input data type"),
        (
            (
                "[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/job-1/model.onnx failed:"
                "/onnxruntime_src/onnxruntime/core/graph/model.cc:180 onnxruntime::Model::Model(onnx::ModelProto&&, const"
                " onnxruntime::PathString&, const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*) Unsupported model IR version: 19"
            ),
            "Load model from a file failed: Unsupported model IR version: 19",
        ),
        (
            (
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Where node."
                " Name:'/model/layer.0/Where' Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/math/"
                "element_wise_ops.h:540 void onnxruntime::BroadcastIterator::Init(ptrdiff_t, ptrdiff_t) axis == 1 || axis == largest"
                " was false. Attempting to broadcast an axis by a dimension other than 1. 4 by 5\nStacktrace:\n at /usr/lib/x.so"
            ),
            "axis == 1 || axis == largest was false. Attempting to broadcast an axis by a dimension other than 1. 4 by 5",
        ),
        (
            "Exception during initialization: /home/someone/net.onnx is no /model/conv1/Conv",
            "a file is no /model/conv1/Conv",
        ),
        (
            (
                "CUDNN failure 8: NOT_SUPPORTED ; GPU=0 ; hostname=worker-7 ; file=/onnxruntime_src/onnxruntime/core/providers/cuda"
                "/nn/conv.cc ; line=238 ; expr=plan(graph);"
            ),
            "CUDNN failure 8: NOT_SUPPORTED ; expr=plan(graph);",
        ),
        ("", ""),
    ],
)
def test_the_runtimes_own_sentence_is_left(text, told, tmp_path):
    # A folder that is here, unlike one that only looks so.
    assert sentence(text.replace("/home/someone", str(tmp_path))) == told


@pytest.mark.parametrize("explain", [explain_load, explain_run, lambda error: explain_provider(error, "cuda")])
def test_what_is_not_recognised_is_passed_on(explain):
    assert explain(RuntimeError("The moon is in the wrong phase.")).message.endswith(": The moon is in the wrong phase")
    assert len(explain(RuntimeError("x" * 5000)).message) < 500


def _reshaping(build, shape):
    """A network that runs on two samples and fails on any other number."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], "/head/Reshape")]
    return build(nodes, {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, {"shape": np.array(shape)})


def test_a_failing_node_says_why(build):
    with pytest.raises(EngineError, match=r"Reshape failed .*: .*cannot be reshaped to the requested shape") as caught:
        session(_reshaping(build, [3, 5]), Target()).run({"x": X})
    assert caught.value.node == "/head/Reshape"
    assert "onnxruntime" not in caught.value.message


class _Breaking:
    """A session whose runs end as bindings do that find their arrays gone: in a plain RuntimeError."""

    def __init__(self, inner):
        self.target, self.pool_threads, self._call, self._left = (
            inner.target,
            inner.pool_threads,
            inner.bind({"x": X}),
            7,
        )

    def bind(self, _feed):
        def call():
            self._left -= 1
            if self._left < 0:
                raise RuntimeError("Error in execution: the binding is gone")
            return self._call()

        return call


def test_plain_errors_of_the_binding_are_explained_where_time_is_taken(build, monkeypatch):
    breaking = _Breaking(session(_reshaping(build, [4, 2]), Target()))
    with pytest.raises(EngineError, match="the binding is gone"):
        take_turns({"a": breaking, "b": breaking}, [{"x": X}], seconds=1, min_runs=20, max_runs=20, precision=0)
    monkeypatch.setattr("engine.measure.throughput.session", lambda *_: breaking)
    with pytest.raises(EngineError, match="the binding is gone"):
        measure_throughput(_reshaping(build, [4, 2]), [{"x": X}], Target(), seconds=0.05, levels=(1,))


def test_outputs_of_another_rank_than_declared_are_run_all_the_same(build):
    """onnxruntime warns of them, and refuses only a second run into the same arrays."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["made"]),
        helper.make_node("Reshape", ["made", "shape"], ["y"]),
    ]
    constants = {"axes": np.array([0]), "shape": np.array([1, -1, 4])}
    model = build(nodes, {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, constants)
    for declared in (["n", 4], [1, 3, 4], ["a", "n", 4]):
        call = session(_declaring(model, declared), Target()).bind({"x": X})
        for _ in range(3):
            call()


def _declaring(serialized, shape):
    model = onnx.load_model_from_string(serialized)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return model.SerializeToString()
