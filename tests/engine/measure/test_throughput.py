import numpy as np
import pytest
from onnx import TensorProto, helper

from engine.errors import ModelInvalidError
from engine.measure.throughput import measure_throughput
from engine.runtime import loading, providers
from engine.target import Target


def test_each_level_has_its_own_callers(convolutions):
    feed = {"x": np.ones((2, 16, 16, 16), np.float32)}
    found = measure_throughput(convolutions(1), [feed], Target(batch=2), seconds=0.1, levels=(1, 3))
    assert [each.concurrency for each in found] == [1, 3]
    for each in found:
        assert each.runs >= each.concurrency
        assert each.samples_per_s == pytest.approx(2 * each.runs_per_s)
        assert 0 < each.p50_ms <= each.p99_ms


def test_levels_double_up_to_twice_the_cores(convolutions, monkeypatch):
    from engine.measure import throughput
    from engine.runtime.processor import CpuProfile

    monkeypatch.setattr(throughput, "cpu_profile", lambda: CpuProfile("a processor", (), 3, "none"))
    feed = {"x": np.ones((1, 16, 16, 16), np.float32)}
    found = measure_throughput(convolutions(1), [feed], Target(), seconds=0.02)
    assert [each.concurrency for each in found] == [1, 2, 4]
    alone = providers.PROVIDERS["cpu"].__class__("CPUExecutionProvider", "cpu", concurrent=False)
    monkeypatch.setitem(providers.PROVIDERS, "cpu", alone)
    assert len(measure_throughput(convolutions(1), [feed], Target(), seconds=0.02)) == 1


def test_a_run_that_fails_is_told_in_the_owners_words(build, monkeypatch):
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"], "look")]
    table = {"table": np.ones((4, 2), np.float32)}
    model = build([helper.make_node("Cast", ["f"], ["x"], to=TensorProto.INT64), *nodes], {"f": ["n"]}, {"y": 1}, table)
    feed = {"f": np.zeros(1, np.float32)}
    bind = loading.Session.bind

    def bound_out_of_range(session, _feed):
        bind(session, feed)
        wrong = {"f": np.full(1, 9, np.float32)}
        return lambda: session._inner.run(None, wrong)

    monkeypatch.setattr(loading.Session, "bind", bound_out_of_range)
    with pytest.raises(ModelInvalidError, match="Gather failed") as caught:
        measure_throughput(model, [feed], Target(), seconds=0.05, levels=(2,))
    assert caught.value.node == "look"
