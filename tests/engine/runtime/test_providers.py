import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.errors import DatasetInvalidError, ModelInvalidError, ModelUnsupportedError, TargetUnavailableError
from engine.report.run_facts import SessionOptions
from engine.runtime import discovery, kernel_times, library, plugins, providers, tracing
from engine.runtime.discovery import available_targets
from engine.runtime.environment import environment
from engine.runtime.library import check_single_onnxruntime
from engine.runtime.processor import cpu_profile
from engine.runtime.sessions import session
from engine.runtime.tracing import nodes_by_provider, optimised_graph
from engine.target import ProviderName, Target

CPU = Target()
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def relu(build, **options):
    return build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, **options)


def test_a_session_runs_and_describes_itself(build, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(relu(build))
    for model in (path, path.read_bytes()):
        loaded = session(model, CPU)
        assert [(port.name, port.dtype, port.shape) for port in loaded.inputs] == [("x", np.float32, ("n", 4))]
        assert loaded.providers == ("CPUExecutionProvider",)
        np.testing.assert_array_equal(loaded.run({"x": X})["y"], X)


def test_threads_are_the_targets(convolutions):
    assert session(convolutions(1), Target(threads=1)).pool_threads == frozenset()
    assert len(session(convolutions(1), Target(threads=3)).pool_threads) == 2


def test_optimisation_can_be_left_out(convolutions):
    model = convolutions(2)
    fused = onnx.load_from_string(optimised_graph(model, CPU))
    assert "Relu" not in {node.op_type for node in fused.graph.node}
    feed = {"x": np.ones((1, 16, 16, 16), np.float32)}
    plain = session(model, CPU, optimise=False).run(feed)["y"]
    np.testing.assert_allclose(session(model, CPU).run(feed)["y"], plain, rtol=1e-4, atol=1e-5)


def test_nodes_are_counted_where_they_ran(build):
    assert nodes_by_provider(relu(build), CPU, {"x": X}) == {"CPUExecutionProvider": 1}


def test_a_provider_that_is_not_there_is_an_error_not_the_cpu(build):
    with pytest.raises(TargetUnavailableError, match="built without the execution provider cuda"):
        session(relu(build), Target(provider="cuda"))


def test_a_listed_provider_that_does_not_run_is_an_error(build, monkeypatch):
    # A wheel lists what it was built with. Azure's provider is listed in every cpu wheel, and never takes a node.
    listed = providers.Provider("AzureExecutionProvider", "gpu")
    monkeypatch.setitem(providers.PROVIDERS, "cuda", listed)
    discovery.prove.cache_clear()
    with pytest.raises(TargetUnavailableError, match="No node of the network ran on cuda"):
        session(relu(build), Target(provider="cuda"))
    found = {target.provider: target for target in available_targets()}["cuda"]
    assert (found.available, found.reason) == (
        False,
        "No node of the network ran on cuda: all fell back to CPUExecutionProvider",
    )


def test_every_provider_of_a_spec_is_in_the_table():
    assert set(providers.PROVIDERS) == set(ProviderName.__args__)


def test_targets_are_proven_or_say_why_not():
    found = {target.provider: target for target in available_targets()}
    assert found["cpu"].available
    assert found["cpu"].flags == cpu_profile().flags
    assert all(target.available or target.reason for target in found.values())


def test_a_plugin_that_does_not_load_says_so(tmp_path):
    with pytest.raises(TargetUnavailableError, match="did not start") as caught:
        plugins.register_plugin("webgpu", tmp_path / "missing.so")
    assert str(tmp_path) not in caught.value.message


def test_plugin_devices_are_chosen_by_device(build, monkeypatch):
    # The CPU's own device stands in for a plugin's: it is offered the same way.
    monkeypatch.setitem(providers.PROVIDERS, "webgpu", providers.Provider("CPUExecutionProvider", "cpu"))
    monkeypatch.setattr(library.onnxruntime_module(), "get_available_providers", list)
    discovery.prove.cache_clear()
    np.testing.assert_array_equal(session(relu(build), Target(provider="webgpu")).run({"x": X})["y"], X)


def test_a_plugin_that_only_emulates_its_device_is_refused(build, monkeypatch):
    monkeypatch.setitem(providers.PROVIDERS, "qnn", providers.Provider("CPUExecutionProvider", "npu"))
    monkeypatch.setattr(library.onnxruntime_module(), "get_available_providers", list)
    discovery.prove.cache_clear()
    with pytest.raises(TargetUnavailableError, match="has no NPU here: it only emulates one"):
        session(relu(build), Target(provider="qnn"))


def plugin(folder, name, body):
    """A package as the plugin providers bring one."""
    (folder / f"{name}.py").write_text(body)
    importlib.invalidate_caches()
    return providers.Provider("WebGpuExecutionProvider", "gpu", plugin=name)


def test_an_installed_plugin_is_loaded_and_says_why_it_does_not_run(build, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    broken = plugin(tmp_path, "broken_plugin", "def get_library_path():\n    raise OSError('no library')\n")
    monkeypatch.setitem(providers.PROVIDERS, "webgpu", broken)
    with pytest.raises(TargetUnavailableError, match="did not start"):
        session(relu(build), Target(provider="webgpu"))
    # The runtime's own library is none of a provider.
    bound = Path(library.onnxruntime_module().__file__).parent / "capi" / "onnxruntime_pybind11_state.so"
    text = f"def get_library_path():\n    return {str(bound)!r}\n"
    monkeypatch.setitem(providers.PROVIDERS, "webgpu", plugin(tmp_path, "foreign_plugin", text))
    found = {target.provider: target for target in available_targets()}["webgpu"]
    assert not found.available
    assert "did not start" in found.reason


def test_a_plugin_without_a_device_is_refused_each_time(build, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(providers.PROVIDERS, "webgpu", plugin(tmp_path, "idle_plugin", ""))
    monkeypatch.setattr(plugins, "_registered", {"WebGpuExecutionProvider"})
    for _ in range(2):
        with pytest.raises(TargetUnavailableError, match="finds no device on this host"):
            session(relu(build), Target(provider="webgpu"))


def test_a_provider_that_runs_only_a_part_is_not_proven(monkeypatch):
    ran = [
        kernel_times.NodeRun("MatMul", "a", "CUDAExecutionProvider", 1.0),
        kernel_times.NodeRun("Relu", "b", "CPUExecutionProvider", 1.0),
    ]
    monkeypatch.setattr(tracing, "profile", lambda *_: [ran])
    monkeypatch.setattr(discovery, "offered", lambda: frozenset({"CUDAExecutionProvider"}))
    with pytest.raises(TargetUnavailableError, match="should run ran on CPUExecutionProvider"):
        discovery.prove("cuda")


def test_a_provider_that_cannot_load_a_network_of_ours_is_to_blame_itself(monkeypatch):
    # Azure's provider takes no node, and so stands in for one that fails: the network is told apart from it.
    monkeypatch.setattr(discovery, "_tiny_network", lambda: b"not a network")
    monkeypatch.setitem(providers.PROVIDERS, "cuda", providers.Provider("AzureExecutionProvider", "gpu"))
    with pytest.raises(TargetUnavailableError, match="cuda is part of this onnxruntime, but did not start"):
        discovery.prove("cuda")


def test_each_node_is_told_with_its_provider(convolutions):
    traced = tracing.trace(convolutions(2), CPU, [{"x": np.ones((1, 16, 16, 16), np.float32)}], runs=2)
    assert {node.provider for node in traced.nodes} == {"CPUExecutionProvider"}
    assert [node.op_type for node in traced.nodes].count("Conv") == 2
    assert len(traced.runs) == 2


def test_session_options_take_the_place_of_the_targets(convolutions):
    options = SessionOptions(threads=3, graph_optimization="disabled", spinning=False)
    loaded = session(convolutions(1), Target(threads=1), options=options)
    assert len(loaded.pool_threads) == 2
    assert loaded.target.threads == 3
    parallel = SessionOptions(threads=1, execution_mode="parallel", inter_op_threads=2)
    assert session(convolutions(1), Target(), options=parallel).pool_threads


@pytest.fixture(autouse=True)
def _forget_proofs():
    yield
    discovery.prove.cache_clear()


# What fails says so in the owner's words


def load_problem(model):
    with pytest.raises((ModelInvalidError, ModelUnsupportedError)) as caught:
        session(model, CPU)
    return caught.value


def test_unreadable_bytes(build):
    assert "cannot be parsed" in load_problem(b"not a network").message
    load_problem(b"")
    load_problem(relu(build)[:40])


def test_unknown_operators(build):
    foreign = [helper.make_node("Secret", ["x"], ["y"], domain="com.example")]
    found = load_problem(build(foreign, {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, foreign="com.example"))
    assert isinstance(found, ModelUnsupportedError)
    assert "`com.example:Secret`" in found.message
    missing = load_problem(build([helper.make_node("Missing", ["x"], ["y"])], {"x": [4]}, {"y": TensorProto.FLOAT}))
    assert "`Missing`" in missing.message


def test_no_kernel_names_the_node(build):
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Erf", ["b"], ["y"], "erf7"),
    ]
    found = load_problem(build(nodes, {"x": [4]}, {"y": TensorProto.BFLOAT16}))
    assert (type(found), found.node) == (ModelUnsupportedError, "erf7")


def test_broken_graphs(build):
    mixed = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32), helper.make_node("Add", ["x", "i"], ["y"])]
    assert "type Add" in load_problem(build(mixed, {"x": [4]}, {"y": TensorProto.FLOAT})).message
    loop = [helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    assert "cycle" in load_problem(build(loop, {"x": [4]}, {"y": TensorProto.FLOAT})).message
    assert "opset" in load_problem(relu(build, opset=99)).message


def test_missing_files_are_told_without_a_path(build, tmp_path):
    path = tmp_path / "net.onnx"
    weights = {"w": np.ones((64, 4), np.float32)}
    added = build([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [64, 4]}, {"y": TensorProto.FLOAT}, weights)
    onnx.save(onnx.load_from_string(added), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    for model in (path, tmp_path / "nothing.onnx"):
        found = load_problem(model)
        assert "missing" in found.message
        assert str(tmp_path) not in found.message


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"x": X[:, :3]}, "axis 1 is 3, not 4"),
        ({"x": X[0]}, "1 axes, not 2"),
        ({"x": X.astype(np.int32)}, "int32, the network takes float"),
        ({"z": X}, "lack the network's input 'x'"),
        ({"x": X, "z": X}, "no input `z`"),
    ],
)
def test_data_that_do_not_fit(build, feed, words):
    with pytest.raises(DatasetInvalidError, match=re.escape(words)):
        session(relu(build), CPU).run(feed)


def test_a_node_that_fails_is_named(build):
    shape = {"shape": np.array([3, 5])}
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape1")]
    loaded = session(build(nodes, {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, shape), CPU)
    with pytest.raises(ModelInvalidError, match="Reshape failed") as caught:
        loaded.run({"x": X})
    assert caught.value.node == "reshape1"
    assert "onnxruntime_src" not in caught.value.message


def test_too_much_memory_is_told(build):
    shape = {"shape": np.array([1 << 20, 1 << 20, 4])}
    nodes = [helper.make_node("Expand", ["x", "shape"], ["y"], "huge")]
    loaded = session(build(nodes, {"x": ["n", 4]}, {"y": TensorProto.FLOAT}, shape), CPU)
    with pytest.raises(ModelUnsupportedError, match="more memory than there is") as caught:
        loaded.run({"x": X[:1]})
    assert caught.value.node == "huge"


# One onnxruntime, and a silent one


def copy_distribution(name, folder, called):
    info = distribution(name)._path
    copied = folder / f"{called.replace('-', '_')}-1.0.dist-info"
    shutil.copytree(info, copied)
    metadata = copied / "METADATA"
    metadata.write_text(re.sub(r"(?m)^Name: .*$", f"Name: {called}", metadata.read_text(encoding="utf-8"), count=1))


def test_exactly_one_onnxruntime_may_own_the_folder(tmp_path):
    with pytest.raises(TargetUnavailableError, match="not installed"):
        check_single_onnxruntime([tmp_path])
    copy_distribution(check_single_onnxruntime(), tmp_path, "onnxruntime")
    assert check_single_onnxruntime([tmp_path]) == "onnxruntime"
    copy_distribution(check_single_onnxruntime(), tmp_path, "onnxruntime-gpu")
    with pytest.raises(TargetUnavailableError, match="onnxruntime and onnxruntime-gpu share one import folder"):
        check_single_onnxruntime([tmp_path])


def test_only_what_may_own_the_folder_is_read_and_once_per_process(tmp_path, monkeypatch):
    copy_distribution(check_single_onnxruntime(), tmp_path, "onnxruntime")
    copy_distribution("numpy", tmp_path, "numpy")
    read, genuine = [], library.Distribution.at
    monkeypatch.setattr(library.Distribution, "at", lambda path: read.append(path.name) or genuine(path))
    assert check_single_onnxruntime([tmp_path]) == "onnxruntime"
    assert read == ["onnxruntime-1.0.dist-info"]
    read.clear()
    library._owners_here.cache_clear()
    assert check_single_onnxruntime() == check_single_onnxruntime()
    assert len(read) == len(set(read)) > 0


def test_importing_the_room_loads_no_runtime():
    rooms = "from engine.runtime import discovery, environment, sessions; from engine.measure import latency, memory, quality"
    script = f"import sys; {rooms}; assert 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


SILENT = """
import json, sys
from pathlib import Path
import numpy
before = len(list(Path("/proc/self/task").iterdir()))
from engine.runtime.sessions import session
from engine.target import Target
loaded = session(Path(sys.argv[1]), Target(threads=2))
for _ in range(3):
    loaded.run({"x": numpy.ones((2, 4), "f")})
import time
time.sleep(1.5)
links = []
for entry in Path("/proc/self/fd").iterdir():
    try:
        links.append(str(entry.readlink()))
    except FileNotFoundError:
        pass
print(json.dumps({
    "threads": len(list(Path("/proc/self/task").iterdir())) - before - len(loaded.pool_threads),
    "pool": len(loaded.pool_threads),
    "sockets": [link for link in links if link.startswith("socket:")],
}))
"""


def test_no_telemetry(build, tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "net.onnx").write_bytes(relu(build))
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(work / "net.onnx")],
        env={"HOME": str(home), "PATH": os.defpath, "TMPDIR": str(work)},  # no CI variable: it hides telemetry
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=work,
    )
    assert done.stdout.strip() == '{"threads": 0, "pool": 1, "sockets": []}'
    assert list(home.rglob("*")) == []
    assert [path.name for path in work.rglob("*")] == ["net.onnx"]


def test_the_environment_says_where():
    found = environment(CPU)
    assert found.cpu == cpu_profile().name
    assert found.onnxruntime == library.runtime_version()
    assert Path(sys.executable).exists()
