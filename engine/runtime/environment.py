"""The fingerprint of where numbers were measured."""

import platform

from engine.report.values import Environment
from engine.runtime.gpu import described, gpu_profile
from engine.runtime.library import check_single_onnxruntime, runtime_version
from engine.runtime.plugins import ep_version
from engine.runtime.processor import cpu_profile
from engine.target import Target


def environment(target: Target) -> Environment:
    """Describe this machine and runtime for a report."""
    cpu, gpu = cpu_profile(), gpu_profile(target.provider)
    tf32 = None if gpu is None or gpu.tf32 is None else target.provider_options.get("use_tf32") != "0"
    return Environment(
        cpu=cpu.name,
        cpu_flags=cpu.flags,
        cores=cpu.cores,
        onnxruntime=runtime_version(),
        provider=target.provider,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        distribution=check_single_onnxruntime(),
        ep_version=ep_version(target.provider),
        **described(gpu),
        tf32=tf32,
        provider_options=target.provider_options,
    )
