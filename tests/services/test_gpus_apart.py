"""Two GPUs never share a figure: neither by the class that routes work, nor by the kind of machine that a result was measured on."""

import pytest

from engine.runtime.discovery import AvailableTarget
from engine.runtime.environment import environment
from engine.target import Target
from services import cache, routing

GPU = {
    "provider": "cuda", "cpu": "A CPU", "flags": ["avx2"], "onnxruntime": "1.31.1", "distribution": "onnxruntime-gpu",
    "ep_version": None, "gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_bytes": 85 << 30, "driver": "580.159.04",
    "cuda": "13.0", "cudnn": "9.15.1",
}  # fmt: skip
CPU = {
    name: None if name in {"gpu", "gpu_memory_bytes", "driver", "cuda", "cudnn"} else value
    for name, value in GPU.items()
}


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H200"},
        {"driver": "570.86.15"},
        {"cuda": "13.1"},
        {"cudnn": "9.10.2"},
    ],
)
def test_another_gpu_or_what_drives_it_is_another_machine(other):
    assert routing.target_class(GPU) != routing.target_class({**GPU, **other})
    assert cache.machine(GPU, "flags") != cache.machine({**GPU, **other}, "flags")


def test_a_part_of_a_gpu_is_another_machine():
    assert cache.machine(GPU, "flags") != cache.machine({**GPU, "gpu_memory_bytes": 10 << 30}, "flags")


def test_a_class_says_what_it_is():
    assert routing.target_class(GPU) == "cuda/NVIDIA H100 80GB HBM3, driver 580.159.04, cuda 13.0, cudnn 9.15.1"
    assert routing.target_class({**CPU, "provider": "cpu"}) == "cpu/avx2"


def test_a_report_and_a_list_of_targets_name_a_machine_alike():
    """What was measured is found again by what a worker proves: both name the same fields."""
    told = environment(Target()).model_dump()
    fields = set(AvailableTarget.__dataclass_fields__)
    for name in ("provider", "cpu", "onnxruntime", "distribution", "ep_version", "gpu", *cache._OF_A_GPU):
        assert name in told
        assert name in fields


def test_processors_keep_the_name_that_they_had():
    assert cache.machine(CPU, "flags") == cache.machine(
        {name: CPU[name] for name in CPU if name not in cache._OF_A_GPU}, "flags"
    )
