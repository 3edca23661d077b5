"""A plugin execution provider as its package brings it, beside the onnxruntime that is installed: OpenVINO's, on the processor."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]
_KEPT = _ROOT / "var" / "environments" / "openvino-plugin"
_SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import numpy as np
from onnx import TensorProto, helper
from engine.report.run_facts import SessionOptions
from engine.runtime.discovery import available_targets
from engine.runtime.environment import environment
from engine.runtime.sessions import session
from engine.runtime.tracing import nodes_by_provider
from engine.target import Target

x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])], "g", [x], [y])
net = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
target = Target(provider="openvino", provider_options={"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"})
feed = {"x": np.ones((1, 4), np.float32)}
(found,) = available_targets(["openvino"])
told = {"available": found.available, "reason": found.reason}
if found.available:
    told |= {
        "version": found.ep_version,
        "told": environment(target).provider_options,
        "ran": nodes_by_provider(net, target, feed),
        "gave": session(net, target).run(feed)["y"].tolist(),
    }
print(json.dumps(told))
"""

_NO_DEVICE = "The plugin of the execution provider openvino is loaded, but finds no device on this host"


@pytest.fixture(scope="module")
def package():
    """The plugin's package, fetched once (53 MB) and kept below var/."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("onnxruntime-ep-openvino has no wheel for this machine")
    if not _KEPT.exists():
        making = _KEPT.with_name(f"openvino-plugin.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", making]
        done = subprocess.run([*command, "onnxruntime-ep-openvino>=1.8"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"onnxruntime-ep-openvino cannot be fetched: {done.stderr[-200:]}")
        if not _KEPT.exists():
            making.rename(_KEPT)
    return _KEPT


def test_a_plugin_runs_networks_with_the_options_of_a_job(package, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, _ROOT, package], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    if "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        # The plugin takes Intel's devices alone, and says nothing.
        assert told == {"available": False, "reason": _NO_DEVICE}
        return
    assert (told["available"], told["reason"]) == (True, None)
    assert told["version"].startswith("1.")
    assert told["ran"] == {"OpenVINOExecutionProvider": 1}
    assert told["gave"] == [[-1.0] * 4]
    assert told["told"] == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
