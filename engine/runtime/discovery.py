"""What this process can run networks on: every provider proven by a run, or the reason why not."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

import numpy as np

from engine.errors import EngineError, TargetUnavailableError
from engine.runtime.failures import explain_provider, explain_start
from engine.runtime.gpu import described, gpu_profile
from engine.runtime.library import check_single_onnxruntime, runtime_version
from engine.runtime.native_output import Printed, held_back
from engine.runtime.plugins import built_in, ep_version, is_listed, load_plugin, offered, plugin_devices
from engine.runtime.processor import cpu_profile
from engine.runtime.providers import PROVIDERS
from engine.runtime.tracing import nodes_by_provider
from engine.target import PROVIDER_NAMES, ProviderName, Target


@dataclass(frozen=True)
class AvailableTarget:
    """A provider on this host: proven by a run, or the reason why it is not advertised. `threads` are the usable cores.

    `listed`: the runtime claims to have it, which alone means nothing. `distribution` is the installed one that
    brought the runtime, `ep_version` the version that a plugin provider gives itself. `gpu` and what follows are of the GPU that a
    proven provider runs on.
    """

    provider: ProviderName
    available: bool
    listed: bool
    reason: str | None
    device: str
    cpu: str
    flags: tuple[str, ...]
    threads: int
    onnxruntime: str
    distribution: str
    ep_version: str | None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None


def targets(providers: Sequence[str] = PROVIDER_NAMES) -> list[dict[str, Any]]:
    """Run a small network on each provider here; give each with its device, CPU flags and versions.

    `available` ones really ran it; of the others `reason` says why not, and `listed` whether the runtime claims to have it.
    A provider's library may end the process: whoever has to go on asks in a child, or for one provider at a time.
    """
    return [asdict(target) for target in available_targets(cast("Sequence[ProviderName]", providers))]


def available_targets(names: Iterable[ProviderName] | None = None) -> tuple[AvailableTarget, ...]:
    """Try every provider of the table, or only the named ones, on a tiny network, now, on this host."""
    return tuple(_tried(name) for name in (PROVIDERS if names is None else names))


def _tried(name: ProviderName) -> AvailableTarget:
    provider, cpu, distribution = PROVIDERS[name], cpu_profile(), check_single_onnxruntime()
    reason = _why_not(name)
    gpu = gpu_profile(name) if reason is None else None
    return AvailableTarget(
        provider=name,
        available=reason is None,
        listed=is_listed(provider),
        reason=reason,
        device=provider.device,
        cpu=cpu.name,
        flags=cpu.flags,
        threads=cpu.cores,
        onnxruntime=runtime_version(),
        distribution=distribution,
        ep_version=ep_version(name),
        **described(gpu),
    )


@cache
def prove(name: ProviderName) -> None:
    """Run a tiny network on a provider, once per process: a provider that is listed is not yet one that runs.

    Raises:
        TargetUnavailableError: the runtime lacks it, it does not start, it has no device, or nodes ran elsewhere.
    """
    provider, target = PROVIDERS[name], Target(provider=name)
    load_plugin(name)
    if provider.runtime not in offered():
        raise TargetUnavailableError(f"This onnxruntime was built without the execution provider {name}")
    _not_emulated(name)
    feed = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)}
    printed = Printed()
    try:
        with held_back(on_failure="keep") as printed:
            counts = nodes_by_provider(_tiny_network(), target, feed)
    except TargetUnavailableError as error:
        raise explain_start(error, printed.text) from error
    except EngineError as error:
        # The network is ours and runs everywhere, so it is the provider that does not.
        raise explain_start(explain_provider(error.__cause__ or error, name), printed.text) from error
    elsewhere = sorted(set(counts) - {provider.runtime})
    if elsewhere:
        raise TargetUnavailableError(f"A part of a network of two nodes that {name} should run ran on {elsewhere[0]}")


def _not_emulated(name: ProviderName) -> None:
    """Refuse a plugin that only emulates its device on the CPU: its figures would be of something that nobody has."""
    provider = PROVIDERS[name]
    kinds = {device.device.type.name.lower() for device in plugin_devices(provider.runtime)}
    if kinds == {"cpu"} and provider.device != "cpu" and provider.runtime not in built_in():
        raise TargetUnavailableError(
            f"The execution provider {name} has no {provider.device.upper()} here: it only emulates one on the CPU"
        )


def _why_not(name: ProviderName) -> str | None:
    try:
        prove(name)
    except EngineError as error:
        return error.message
    return None


def _tiny_network() -> bytes:
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  # loaded only where a provider is proven

    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [weight],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    serialized: bytes = model.SerializeToString()
    return serialized
