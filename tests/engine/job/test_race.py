"""A race of many networks: in groups, so that memory does not grow with their number, and each has its ratio in order."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import ModelUnsupportedError
from engine.job import workbench as module
from engine.job.workbench import Workbench, run_bytes
from engine.runtime.host_lock import HostLock
from engine.target import Target


@pytest.fixture
def bench(tmp_path):
    def make(*, in_pieces=False):
        return Workbench(
            target=Target(), scratch=tmp_path, lock=HostLock(None), calibrate=None,
            select=None, has_data=False, evaluator=None, feeds=[{"x": np.ones((1, 16, 16, 16), np.float32)}], gates=(),
            declared={}, in_pieces=in_pieces, deadline=None, run_bytes=run_bytes(4096),
        )  # fmt: skip

    return make


def test_many_networks_race_in_groups_beside_the_first(bench, convolutions, monkeypatch):
    monkeypatch.setattr(module, "_RACE_SECONDS", 0.05)
    groups, real = [], module.compare_many
    monkeypatch.setattr(
        module, "compare_many", lambda *args, **more: (groups.append(list(args[1])), real(*args, **more))[1]
    )
    models = [ir.from_proto(onnx.load_model_from_string(convolutions(layers))) for layers in (1, 1, 12, 1, 1, 12, 1)]
    ratios = bench().race(models)
    assert groups == [["1", "2", "3", "4"], ["5", "6"]]
    assert len(ratios) == 7
    assert ratios[0] == 1.0
    # Twelve layers are several times the work of one, however busy the machine is.
    assert sorted(range(7), key=lambda index: ratios[index])[-2:] in ([2, 5], [5, 2])


def test_what_does_not_fit_into_memory_is_not_timed(bench):
    with pytest.raises(ModelUnsupportedError, match="too large to be timed"):
        bench(in_pieces=True).race([])


def test_a_run_may_hold_a_share_of_the_jobs_memory():
    assert run_bytes(1 << 20) == run_bytes(4096) == 64 << 20
    assert run_bytes(1024) == 32 << 20
    assert run_bytes(1) == 8 << 20
