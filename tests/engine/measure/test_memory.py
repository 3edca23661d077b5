import contextlib
import threading

import numpy as np
import onnx
import psutil
import pytest

from engine.errors import DatasetInvalidError, ModelInvalidError, OutOfTimeError
from engine.measure.memory import probe, store_feed
from engine.target import Target

MIB = 1 << 20


@pytest.fixture
def feed(tmp_path):
    path = tmp_path / "feed.npz"
    store_feed(path, {"x": np.ones((1, 2048), np.float32)})
    return path


def test_a_fresh_process_measures_one_network(tmp_path, linear, feed):
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(linear(np.ones((2048, 8))))
    large.write_bytes(linear(np.ones((2048, 8192))))
    ballast = np.ones(200 * MIB // 8)  # what this process holds is not counted
    with_small, with_large = probe(small, Target(), feed), probe(large, Target(), feed)
    assert ballast.nbytes == 200 * MIB
    assert with_small.peak_rss_bytes < 200 * MIB
    assert with_large.peak_rss_bytes - with_small.peak_rss_bytes > 60 * MIB  # 64 MiB of weights
    assert with_small.load_ms > 0
    assert with_small.first_run_ms > 0


def test_loads_are_measured_cold_and_warm_where_asked(tmp_path, linear, feed):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear(np.ones((2048, 8))))
    assert probe(path, Target(), feed).warm_load_ms is None
    found = probe(path, Target(), feed, loads=True)
    assert found.load_ms > 0
    assert found.warm_load_ms > 0


def test_problems_come_back_as_they_are(tmp_path, linear, feed):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelInvalidError, match="cannot be parsed"):
        probe(path, Target(), feed)
    path.write_bytes(linear(np.ones((3, 3))))
    with pytest.raises(DatasetInvalidError, match="axis 1 is 2048, not 3"):
        probe(path, Target(), feed)


def test_a_slow_network_is_ended(tmp_path, linear, feed):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear(np.ones((2048, 8))))
    with pytest.raises(OutOfTimeError, match="more than"):
        probe(path, Target(), feed, timeout=0.01)


def test_a_process_that_dies_is_told(tmp_path, linear, feed):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear(np.ones((2048, 8))))
    feed.write_bytes(b"not an archive")
    with pytest.raises(ModelInvalidError, match="died"):
        probe(path, Target(), feed)


def test_a_process_that_somebody_else_has_killed_is_started_again(tmp_path, linear, feed):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear(np.ones((2048, 8))))
    killed, over = [], threading.Event()

    def kill_the_first():
        while not killed and not over.wait(0.005):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if "engine.measure.memory" in child.cmdline():
                        child.kill()
                        killed.append(child.pid)
                        return

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    try:
        assert probe(path, Target(), feed).first_run_ms > 0
    finally:
        over.set()
        killer.join()
    assert killed


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "kwds", "a/b.npy", "größe"])
def test_inputs_may_have_any_name(tmp_path, name):
    """Names that numpy.savez has for its own arguments among them."""
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", [name, "beside"], ["y"])],
        "net",
        [value(name, kind, [1, 4]), value("beside", kind, [])],
        [value("y", kind, [1, 4])],
    )
    path, feed = tmp_path / "net.onnx", tmp_path / "feed.npz"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    store_feed(feed, {name: np.ones((1, 4), np.float32), "beside": np.float32(1)})
    assert probe(path, Target(), feed).first_run_ms > 0
