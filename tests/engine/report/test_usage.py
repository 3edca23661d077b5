"""Options as Python: what a reader pastes has to be Python, and to say what the measured session was given."""

import ast

import numpy as np
import pytest
from onnx import TensorProto, helper

from engine.report.run_facts import SessionOptions
from engine.report.usage import usage
from engine.runtime.providers import PROVIDERS
from engine.target import Target


def test_the_options_of_the_processor_run(build, tmp_path, monkeypatch):
    net = build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": TensorProto.FLOAT})
    (tmp_path / "model.onnx").write_bytes(net)
    monkeypatch.chdir(tmp_path)
    options = SessionOptions(
        threads=2, execution_mode="parallel", inter_op_threads=2, graph_optimization="basic", spinning=False
    )
    names = {}
    exec(usage(Target(), options), names)
    np.testing.assert_array_equal(names["session"].run(None, {"x": np.ones((1, 4), np.float32)})[0], 1)
    assert names["session"].get_session_options().inter_op_num_threads == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_gets_what_it_was_measured_with(provider):
    chosen = next(iter(PROVIDERS[provider].candidates), {})
    options = SessionOptions(threads=3, provider_options=dict(chosen))
    text = usage(Target(provider=provider, threads=3), options)
    ast.parse(text)
    assert PROVIDERS[provider].runtime in text
    given = PROVIDERS[provider].options(
        Target(provider=provider, threads=3).model_copy(update={"provider_options": dict(chosen)})
    )
    # The device is the first one anyway; TensorRT's folders are ours.
    for name, value in given.items():
        if name != "device_id" and not name.endswith(("cache_path", "cache_enable")):
            assert name in text
            assert value in text


def test_recorded_runs_bind_their_outputs_after_a_run_that_makes_them():
    options = SessionOptions(threads=1, provider_options={"enable_cuda_graph": "1"}, inputs_on_device=True)
    text = usage(Target(provider="cuda"), options)
    ast.parse(text)
    unrecorded, bound = text.index('"gpu_graph_id", "-1"'), text.index("bind_ortvalue_output")
    assert unrecorded < bound < text.rindex("session.run_with_iobinding(binding)")
