"""The fingerprint of where numbers were measured."""

import platform

from engine.measure.cpu import cpu_profile
from engine.measure.providers import check_single_onnxruntime, ep_version, runtime_version
from engine.report import Environment
from engine.spec import Target


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
