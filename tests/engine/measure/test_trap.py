"""A runtime that lists CUDA and TensorRT on a host without a GPU: it would run everything on the CPU and say nothing."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parents[3]
_KEPT = _ROOT / "var" / "environments" / "onnxruntime-gpu"

TRAP = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from engine import EngineError, read_spec, run, targets
from engine.runtime import discovery, library, sessions

told = {"listed": library.onnxruntime_module().get_available_providers(), "proven": [each["provider"] for each in targets() if each["available"]]}
told["reasons"] = {each.provider: each.reason for each in discovery.available_targets(["cuda", "tensorrt"])}
cuda = {"provider": "cuda"}
jobs = {
    "profile": {"kind": "profile", "targets": [cuda]},
    "beside": {"kind": "profile", "targets": [{}, cuda]},
    "compress": {"recipe": {"passes": [{"type": "simplify"}]}, "target": cuda},
}
for name, body in jobs.items():
    workspace = Path(sys.argv[3], name)
    (workspace / "model").mkdir(parents=True)
    (workspace / "model" / "model.onnx").write_bytes(Path(sys.argv[4]).read_bytes())
    body |= {"measure_seconds": 0.1} if name != "compress" else {}
    try:
        run(read_spec(body), workspace, lambda event: None, probe=lambda *_: providers_memory())
    except EngineError as error:
        told[name] = error.problem()
    told[name + " report"] = (workspace / "out" / "report.json").exists()

# Even a process that believes in the provider gets no session of it.
sessions.prove = lambda name: None
try:
    sessions.session(Path(sys.argv[4]), read_spec(jobs["profile"]).targets[0])
except EngineError as error:
    told["believed"] = error.message
print(json.dumps(told))
"""
# Of the processor's own turn in the second job.
_MEMORY = """
def providers_memory():
    from engine.report.run_facts import Memory
    return Memory(peak_rss_bytes=1, load_ms=1.0, first_run_ms=1.0)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Our packages with onnxruntime-gpu in the place of onnxruntime; fetched once (a quarter of a GB) and kept below var/."""
    if shutil.which("nvidia-smi"):
        pytest.skip("this host has a GPU: the trap is one only without")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("onnxruntime-gpu has no wheel for this machine")
    if not (_KEPT / "onnxruntime").exists():
        making = _KEPT.with_name(f"onnxruntime-gpu.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", making, "onnxruntime-gpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"onnxruntime-gpu cannot be fetched: {done.stderr[-200:]}")
        if not _KEPT.exists():
            making.rename(_KEPT)
    folder = tmp_path_factory.mktemp("packages")
    for source in (Path(sysconfig.get_paths()["purelib"]), _KEPT):
        for entry in source.iterdir():
            if source == _KEPT or not entry.name.startswith("onnxruntime"):
                link = folder / entry.name
                if not link.exists():
                    link.symlink_to(entry)
    return folder


def test_a_runtime_that_lists_a_gpu_without_one_never_yields_a_number(packages, residual_cnn, tmp_path):
    (tmp_path / "net.onnx").write_bytes(residual_cnn())
    done = subprocess.run(
        # Without site-packages: two onnxruntimes in one process are a mistake of another kind.
        [sys.executable, "-S", "-c", _MEMORY + TRAP, _ROOT, packages, tmp_path / "jobs", tmp_path / "net.onnx"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert "[W:" not in done.stderr
    assert {"CUDAExecutionProvider", "TensorrtExecutionProvider"} <= set(told["listed"])
    assert told["proven"] == ["cpu"]
    assert "fell back from cuda to CPUExecutionProvider" in told["reasons"]["cuda"]
    assert "did not start" in told["reasons"]["tensorrt"]
    # The cause, which onnxruntime only prints: libraries of CUDA are no part of the wheel, and TensorRT is none of CUDA's.
    assert re.search(r"its library lib\w+\.so[.\d]* is missing", told["reasons"]["cuda"])
    for name in ("profile", "beside", "compress"):
        assert told[name]["code"] == "target_unavailable"
        assert "cuda" in told[name]["message"]
        assert told[f"{name} report"] is False
    assert "fell back from cuda" in told["believed"]


def test_the_trap_is_one(packages, residual_cnn, tmp_path):
    """What onnxruntime does where nobody looks: the CPU's result under the GPU's name."""
    (tmp_path / "net.onnx").write_bytes(residual_cnn())
    np.save(tmp_path / "x.npy", np.ones((1, 3, 12, 12), np.float32))
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, onnxruntime
session = onnxruntime.InferenceSession("net.onnx", providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
print(session.get_providers(), session.run(None, {"image": numpy.load("x.npy")})[0].shape)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, packages],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip().endswith("['CPUExecutionProvider'] (1, 5)")
