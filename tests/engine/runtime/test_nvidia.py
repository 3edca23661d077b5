"""The C interfaces of NVIDIA's libraries, asked of libraries that are built here: they answer as the real ones do."""

import json
import os
import shutil
import subprocess
import sys

import pytest

_LIBRARIES = {
    "libcuda.so.1": """
#include <stdlib.h>
#include <string.h>
static size_t taken(void) { const char *text = getenv("FAKE_TAKEN_FILE"); long n = 0; FILE *f = text ? fopen(text, "r") : 0;
  if (f) { if (fscanf(f, "%ld", &n) != 1) n = 0; fclose(f); } return (size_t)n; }
int cuInit(unsigned flags) { return getenv("FAKE_GPU") ? 0 : 100; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, getenv("FAKE_GPU"), length); return device == 7 ? 0 : 1; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? atoi(getenv("FAKE_MAJOR")) : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x123456789a; return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)0x123456789a ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = (size_t)80 << 30; *free = *total - taken(); return 0; }
""",
    "libnvidia-ml.so.1": """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "580.159.04", length); return 0; }
""",
    "libcudart.so.13": "int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }\n",
    "libcudnn.so.9": "#include <stddef.h>\nsize_t cudnnGetVersion(void) { return 91501; }\n",
    "libnvinfer.so.10": "int getInferLibVersion(void) { return 101303; }\n",
}
_SCRIPT = """
import ctypes, json, pathlib, sys, time
from dataclasses import asdict
from engine.runtime import gpu, nvidia
told = {"unloaded": asdict(nvidia.first_gpu())}
for name in ("libcudart.so.13", "libcudnn.so.9", "libnvinfer.so.10"):
    ctypes.CDLL(name)
told |= {"loaded": asdict(nvidia.first_gpu()), "tensorrt": nvidia.tensorrt_version()}
told["profile"] = asdict(gpu.gpu_profile("cuda"))
taken = pathlib.Path(sys.argv[1])
taken.write_text("1000")
with gpu.memory_watch("cuda") as watch:
    taken.write_text("5000")
    time.sleep(0.1)
    taken.write_text("2000")
with gpu.memory_watch("cpu") as none:
    pass
print(json.dumps({**told, "peak": watch.peak_bytes, "none": none.peak_bytes}))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the libraries with")
    folder = tmp_path_factory.mktemp("nvidia")
    for name, source in _LIBRARIES.items():
        (folder / "source.c").write_text("#include <stdio.h>\n" + source)
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, folder / "source.c"], check=True
        )
    return folder


def ask(libraries, tmp_path, script=_SCRIPT, **settings):
    taken = tmp_path / "taken"
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "FAKE_TAKEN_FILE": str(taken), **settings}
    done = subprocess.run(
        [sys.executable, "-c", script, taken], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_gpu_and_what_drives_it_are_told(libraries, tmp_path):
    told = ask(libraries, tmp_path, FAKE_GPU="NVIDIA H100 80GB HBM3", FAKE_MAJOR="9")
    assert told["unloaded"]["cuda"] is told["unloaded"]["cudnn"] is None
    assert told["loaded"] == {
        "name": "NVIDIA H100 80GB HBM3", "driver": "580.159.04", "memory_bytes": 80 << 30, "capability": [9, 0],
        "cuda": "13.2", "cudnn": "9.15.1",
    }  # fmt: skip
    assert told["tensorrt"] == "10.13.3"
    assert told["profile"]["tf32"] is True


def test_the_peak_of_the_devices_memory_is_over_what_was_taken_before(libraries, tmp_path):
    told = ask(libraries, tmp_path, FAKE_GPU="NVIDIA H100 80GB HBM3", FAKE_MAJOR="9")
    assert (told["peak"], told["none"]) == (4000, None)


def test_an_old_gpu_has_no_tf32(libraries, tmp_path):
    assert ask(libraries, tmp_path, FAKE_GPU="Tesla T4", FAKE_MAJOR="7")["profile"]["tf32"] is None


def test_a_driver_without_a_device_is_none(libraries, tmp_path):
    script = "import json; from engine.runtime import nvidia; print(json.dumps(nvidia.first_gpu()))"
    assert ask(libraries, tmp_path, script) is None


def test_tensorrt_keeps_its_engines_by_gpu_in_the_jobs_folder(libraries, tmp_path):
    script = """
import json, pathlib, sys
from engine.runtime import engine_cache, providers
from engine.target import Target
engine_cache.keep_engines_in(pathlib.Path(sys.argv[1]).parent / "engines")
target = Target(provider="tensorrt", provider_options={"trt_cuda_graph_enable": "1"})
print(json.dumps(providers.PROVIDERS["tensorrt"].options(target)))
"""
    found = [ask(libraries, tmp_path, script, FAKE_GPU=name, FAKE_MAJOR="9") for name in ("NVIDIA H100", "NVIDIA L4")]
    folders = {each["trt_engine_cache_path"] for each in found}
    assert len(folders) == 2
    assert all(folder.startswith(str(tmp_path / "engines")) for folder in folders)
    assert {(each["trt_engine_cache_enable"], each["trt_cuda_graph_enable"]) for each in found} == {("1", "1")}
