from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from engine.runtime import providers
from engine.runtime.sessions import exact_target, session
from engine.target import Target

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def with_memory(monkeypatch):
    """The processor as a device that inputs can be bound on: its memory is the host's."""
    line = replace(providers.PROVIDERS["cpu"], memory="cpu", captures="recorded")
    monkeypatch.setitem(providers.PROVIDERS, "cpu", line)


def doubled(build):
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Shape", ["x"], ["s"])]
    return build(nodes, {"x": ["n", 4]}, {"y": TensorProto.FLOAT, "s": TensorProto.INT64})


@pytest.mark.parametrize("changed", [{"inputs_on_device": True}, {"provider_options": {"recorded": "1"}}])
def test_a_run_on_the_device_gives_what_a_plain_one_does(build, with_memory, changed):
    loaded = session(doubled(build), Target().model_copy(update=changed))
    runs = [loaded.bind({"x": scale * X}) for scale in (1, 3)]
    for run, scale in zip(runs, (1, 3), strict=True):
        run()
        np.testing.assert_array_equal(run.outputs()[0], 2 * scale * X)
        np.testing.assert_array_equal(run.outputs()[1], X.shape)
    np.testing.assert_array_equal(loaded.run({"x": X})["y"], 2 * X)


def test_recorded_runs_keep_the_places_of_their_outputs(build, with_memory):
    run = session(doubled(build), Target().model_copy(update={"provider_options": {"recorded": "1"}})).bind({"x": X})
    places = []
    for _ in range(2):
        run()
        places.append([value.data_ptr() for value in run.binding.get_outputs()])
    assert places[0] == places[1]


def test_a_network_of_strings_is_run_from_the_host(with_memory):
    ports = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "strings", ports[:1], ports[1:])
    net = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    loaded = session(net, Target().model_copy(update={"inputs_on_device": True}))
    loaded.bind({"x": np.array(["a", "b"], object)})()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(), Target()),
        (
            Target(provider="cuda", batch=4, provider_options={"prefer_nhwc": "1"}),
            Target(provider="cuda", batch=4, provider_options={"prefer_nhwc": "1", "use_tf32": "0"}),
        ),
        # TensorRT cannot be told, so its networks are compared by CUDA.
        (
            Target(provider="tensorrt", provider_options={"trt_fp16_enable": "1"}),
            Target(provider="cuda", provider_options={"use_tf32": "0"}),
        ),
    ],
)
def test_lossless_steps_are_compared_where_float32_is_float32(target, expected):
    assert exact_target(target) == expected
