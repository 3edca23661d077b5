"""The fingerprint of where numbers were measured."""

import platform

from engine.report.values import Environment
from engine.runtime.library import check_single_onnxruntime, runtime_version
from engine.runtime.plugins import ep_version
from engine.runtime.processor import cpu_profile
from engine.target import Target


def environment(target: Target) -> Environment:
    """Describe this machine and runtime for a report."""
    cpu = cpu_profile()
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
    )
