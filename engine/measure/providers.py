"""Execution providers, and the only home of onnxruntime sessions.

onnxruntime 1.29 and later report telemetry unless told otherwise before the import, so this module says so and imports it
only when the first session is asked for.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError, TargetUnavailableError
from engine.measure.cpu import cpu_profile
from engine.measure.failures import explain_load, explain_provider, explain_run
from engine.measure.profile import NodeRun, read_profile
from engine.report import NodePlacement, SessionOptions
from engine.spec import ProviderName, Target

ModelSource = bytes | Path
Feed = Mapping[str, np.ndarray]

# Names of the plugin providers that this process has loaded.
_registered: set[str] = set()

# Models near protobuf's 2 GiB cannot be written with their weights inside.
_LARGE_MODEL_BYTES = 1 << 30


@dataclass(frozen=True)
class Provider:
    """One line of the table: what onnxruntime calls a provider, what it is given, and who takes the nodes that it leaves.

    `plugin` is the package that brings it to any onnxruntime where it is not built in. `tunable` are the session options that
    reach the provider. `concurrent`: one session may be run by several threads at the same time.
    """

    runtime: str
    device: str
    options: Callable[[Target], dict[str, str]] = lambda _target: {}
    before_cpu: tuple[str, ...] = ()
    memory_pattern: bool = True
    plugin: str | None = None
    tunable: frozenset[str] = frozenset({"graph_optimization"})
    concurrent: bool = True


def _device_zero(_target: Target) -> dict[str, str]:
    return {"device_id": "0"}


def _openvino(target: Target) -> dict[str, str]:
    # The threads are the plugin's own, and without the hint it may compute in bfloat16 where the network says float32.
    load = {"CPU": {"INFERENCE_NUM_THREADS": str(target.threads), "INFERENCE_PRECISION_HINT": "f32"}}
    return {"device_type": "CPU", "load_config": json.dumps(load)}


PROVIDERS: Mapping[ProviderName, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "cpu",
        tunable=frozenset({"threads", "execution_mode", "graph_optimization", "spinning"}),
    ),
    "cuda": Provider("CUDAExecutionProvider", "gpu", _device_zero),
    "tensorrt": Provider("TensorrtExecutionProvider", "gpu", _device_zero, before_cpu=("CUDAExecutionProvider",)),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "cpu",
        _openvino,
        plugin="onnxruntime_ep_openvino",
        tunable=frozenset({"threads", "graph_optimization"}),
    ),
    "directml": Provider("DmlExecutionProvider", "gpu", _device_zero, memory_pattern=False, concurrent=False),
    "migraphx": Provider("MIGraphXExecutionProvider", "gpu", _device_zero),
    "rocm": Provider("ROCMExecutionProvider", "gpu", _device_zero),
    "coreml": Provider("CoreMLExecutionProvider", "npu", lambda _target: {"ModelFormat": "MLProgram"}),
    "webgpu": Provider("WebGpuExecutionProvider", "gpu", plugin="onnxruntime_ep_webgpu"),
    "qnn": Provider("QNNExecutionProvider", "npu", lambda _target: {"backend_type": "htp"}, plugin="onnxruntime_qnn"),
}


FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Port:
    """An input or output of a session. `dtype` is None where it is not a tensor; open axes are names or None."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class AvailableTarget:
    """A provider on this host: proven by a run, or the reason why it is not advertised. `threads` are the usable cores.

    `listed`: the runtime claims to have it, which alone means nothing. `distribution` is the installed one that
    brought the runtime, `ep_version` the version that a plugin provider gives itself.
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


class Session:
    """A network loaded on a target. Runs are deterministic; failures are EngineErrors in the owner's words."""

    def __init__(self, inner: Any, target: Target, threads: frozenset[str]) -> None:
        self._inner = inner
        self.target = target
        self.inputs: tuple[Port, ...] = tuple(_port(argument) for argument in inner.get_inputs())
        self.outputs: tuple[Port, ...] = tuple(_port(argument) for argument in inner.get_outputs())
        self.providers: tuple[str, ...] = tuple(inner.get_providers())
        # The ids of the session's own pool threads, as named in /proc/self/task.
        self.pool_threads = threads
        self._output_names = [port.name for port in self.outputs]

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        try:
            values = self._inner.run(self._output_names, self._fitted(feed))
        except _run_errors() as error:
            raise explain_run(error) from error
        return dict(zip(self._output_names, values, strict=True))

    def bind(self, feed: Feed) -> Callable[[], object]:
        """Give a call that runs the network on this feed with nothing to convert or allocate in Python; it was run once.

        Made for timing: the call raises onnxruntime's own exceptions.
        """
        if all(port.dtype is not None and port.dtype != np.dtype(object) for port in (*self.inputs, *self.outputs)):
            binding = self._inner.io_binding()
            for name, array in self._fitted(feed).items():
                # ascontiguousarray would give a single number an axis.
                binding.bind_cpu_input(name, np.require(array, requirements="C"))
            for name in self._output_names:
                binding.bind_output(name)
            call = partial(self._inner.run_with_iobinding, binding)
        else:
            call = partial(self._inner.run, self._output_names, self._fitted(feed))
        try:
            call()
        except _run_errors() as error:
            raise explain_run(error) from error
        return call

    def _fitted(self, feed: Feed) -> dict[str, np.ndarray]:
        """Give float arrays the width that the network wants: one of a pair may take 16 bits where the other takes 32."""
        wanted = {port.name: port.dtype for port in self.inputs if port.dtype is not None and port.dtype.name in FLOATS}
        return {
            name: array.astype(wanted[name], copy=False) if name in wanted and array.dtype.name in FLOATS else array
            for name, array in feed.items()
        }


def session(
    model: ModelSource, target: Target, *, optimise: bool = True, options: SessionOptions | None = None
) -> Session:
    """Load a network on a target, or raise: TargetUnavailableError rather than a silent run on the CPU.

    `options` take the place of the target's own, its number of threads included.
    """
    if target.provider != "cpu":
        prove(target.provider)
    if options is not None:
        target = target.model_copy(update={"threads": options.threads})
    return _open(model, target, _session_options(target, optimise=optimise, chosen=options))


def default_options(target: Target) -> SessionOptions:
    """Give the session options that a target has by itself."""
    return SessionOptions(threads=target.threads)


@dataclass(frozen=True)
class Trace:
    """What onnxruntime tells of a session: the kernels of each run, and which provider each node of the network was given to."""

    runs: list[list[NodeRun]]
    nodes: tuple[NodePlacement, ...]


def profile(model: ModelSource, target: Target, feeds: Sequence[Feed], runs: int = 1) -> list[list[NodeRun]]:
    """Run the network with onnxruntime's profiler; give the nodes of each run. Feeds are taken in turn."""
    return trace(model, target, feeds, runs).runs


def trace(model: ModelSource, target: Target, feeds: Sequence[Feed], runs: int = 1) -> Trace:
    """Run the network with onnxruntime's profiler. Feeds are taken in turn."""
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options = _session_options(target, optimise=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "run"))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        opened = _open(model, target, options)
        nodes = _placements(opened._inner)  # noqa: SLF001  # the session is this module's own class
        try:
            for turn in range(runs):
                opened.run(feeds[turn % len(feeds)])
        finally:
            written = Path(opened._inner.end_profiling())  # noqa: SLF001  # the session is this module's own class
        return Trace(read_profile(written), nodes)


def _placements(inner: Any) -> tuple[NodePlacement, ...]:
    return tuple(
        NodePlacement(node=node.name, op_type=node.op_type, provider=part.ep_name)
        for part in inner.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def nodes_by_provider(model: ModelSource, target: Target, feed: Feed) -> dict[str, int]:
    """Count the nodes that ran on each provider in one run.

    Raises:
        TargetUnavailableError: none ran on the target's provider.
    """
    return count_nodes(profile(model, target, [feed])[0], target)


def count_nodes(run: Iterable[NodeRun], target: Target) -> dict[str, int]:
    """Count the nodes of one run by provider; raises TargetUnavailableError where none ran on the target's."""
    counts: dict[str, int] = {}
    for node in run:
        counts[node.provider] = counts.get(node.provider, 0) + 1
    wanted = PROVIDERS[target.provider].runtime
    if counts and wanted not in counts:
        raise TargetUnavailableError(
            f"No node of the network ran on {target.provider}: all fell back to {', '.join(sorted(counts))}",
            hint="The provider may not support the network's operators or types.",
        )
    return counts


def optimised_graph(model: ModelSource, target: Target) -> bytes:
    """Give the serialized network that onnxruntime makes of this one and really runs: fused, with layouts chosen.

    Of a network of a gigabyte or more only the structure is given; its large weights refer to a file that is gone.
    Other providers than `cpu` compile what they take and cannot show it.
    """
    if target.provider != "cpu":
        raise TargetUnavailableError(f"The graph that runs on {target.provider} cannot be seen from outside")
    with tempfile.TemporaryDirectory(prefix="optimised-") as folder:
        written = Path(folder, "model.onnx")
        options = _session_options(target, optimise=True)
        options.optimized_model_filepath = str(written)
        if _bytes_of(model) >= _LARGE_MODEL_BYTES:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        _open(model, target, options)
        return written.read_bytes()


def available_targets(names: Iterable[ProviderName] | None = None) -> tuple[AvailableTarget, ...]:
    """Try every provider of the table, or only the named ones, on a tiny network, now, on this host."""
    cpu, distribution = cpu_profile(), check_single_onnxruntime()
    return tuple(
        AvailableTarget(
            provider=name,
            available=(reason := _why_not(name)) is None,
            listed=_is_listed(provider),
            reason=reason,
            device=provider.device,
            cpu=cpu.name,
            flags=cpu.flags,
            threads=cpu.cores,
            onnxruntime=runtime_version(),
            distribution=distribution,
            ep_version=ep_version(name),
        )
        for name, provider in ((name, PROVIDERS[name]) for name in (PROVIDERS if names is None else names))
    )


def _is_listed(provider: Provider) -> bool:
    has_plugin = provider.plugin is not None and find_spec(provider.plugin) is not None
    return has_plugin or provider.runtime in _offered()


def ep_version(name: ProviderName) -> str | None:
    """Give the version that a plugin provider tells of itself; the built-in ones are the package's."""
    versions = {device.ep_metadata.get("version") for device in _plugin_devices(PROVIDERS[name].runtime)}
    return next((str(version) for version in versions if version), None)


@cache
def prove(name: ProviderName) -> None:
    """Run a tiny network on a provider, once per process: a provider that is listed is not yet one that runs.

    Raises:
        TargetUnavailableError: the runtime lacks it, it does not start, it has no device, or nodes ran elsewhere.
    """
    provider, target = PROVIDERS[name], Target(provider=name)
    _load_plugin(name)
    if provider.runtime not in _offered():
        raise TargetUnavailableError(f"This onnxruntime was built without the execution provider {name}")
    _not_emulated(name)
    feed = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)}
    try:
        counts = nodes_by_provider(_tiny_network(), target, feed)
    except TargetUnavailableError:
        raise
    except EngineError as error:
        # The network is ours and runs everywhere, so it is the provider that does not.
        raise explain_provider(error.__cause__ or error, name) from error
    elsewhere = sorted(set(counts) - {provider.runtime})
    if elsewhere:
        raise TargetUnavailableError(f"A part of a network of two nodes that {name} should run ran on {elsewhere[0]}")


def register_plugin(name: ProviderName, library: Path) -> None:
    """Load a plugin execution provider's library, so that the provider is offered beside the built-in ones."""
    runtime = PROVIDERS[name].runtime
    try:
        _runtime().register_execution_provider_library(runtime, str(library))
    except _load_errors() as error:
        raise explain_provider(error, name) from error
    _registered.add(runtime)
    prove.cache_clear()


def _load_plugin(name: ProviderName) -> None:
    """Load the installed plugin package of a provider that is neither built in nor loaded yet.

    Raises TargetUnavailableError where it does not load, or finds no device.
    """
    provider = PROVIDERS[name]
    if provider.plugin is None or provider.runtime in _offered() or find_spec(provider.plugin) is None:
        return
    if provider.runtime not in _registered:
        try:
            library = Path(import_module(provider.plugin).get_library_path())
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise explain_provider(error, name) from error
        register_plugin(name, library)
    if not _plugin_devices(provider.runtime):
        raise TargetUnavailableError(
            f"The plugin of the execution provider {name} is loaded, but finds no device on this host"
        )


def _not_emulated(name: ProviderName) -> None:
    """Refuse a plugin that only emulates its device on the CPU: its figures would be of something that nobody has."""
    provider = PROVIDERS[name]
    kinds = {device.device.type.name.lower() for device in _plugin_devices(provider.runtime)}
    if kinds == {"cpu"} and provider.device != "cpu" and provider.runtime not in _built_in():
        raise TargetUnavailableError(
            f"The execution provider {name} has no {provider.device.upper()} here: it only emulates one on the CPU"
        )


def check_single_onnxruntime(folders: Iterable[Path] | None = None) -> str:
    """Give the name of the one installed onnxruntime distribution.

    Its wheels (cpu, gpu, openvino, ...) share one import folder: two of them overwrite each other's files.

    Raises:
        TargetUnavailableError: none is installed, or more than one owns the folder.
    """
    found = distributions() if folders is None else distributions(path=[str(folder) for folder in folders])
    owners = sorted({owner.name for owner in found if _owns_onnxruntime(owner)})
    if not owners:
        raise TargetUnavailableError(
            "onnxruntime is not installed", hint="Install exactly one of the extras cpu, gpu and openvino."
        )
    if len(owners) > 1:
        raise TargetUnavailableError(
            f"{' and '.join(owners)} share one import folder and have overwritten each other",
            hint="Make a new environment with exactly one of the extras cpu, gpu and openvino.",
        )
    return owners[0]


def runtime_version() -> str:
    """Give onnxruntime's version."""
    version: str = _runtime().__version__
    return version


@cache
def _runtime() -> Any:
    """Import onnxruntime, with telemetry off."""
    check_single_onnxruntime()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # again: someone may have cleaned the environment since
    import onnxruntime  # noqa: PLC0415  # whoever only imports this module must not load it

    return onnxruntime


def _owns_onnxruntime(distribution: Distribution) -> bool:
    if not (distribution.name or "").lower().replace("_", "-").startswith(("onnxruntime", "ort-")):
        return False
    return any(file.as_posix() == "onnxruntime/__init__.py" for file in distribution.files or ())


@cache
def native_errors() -> tuple[type[Exception], ...]:
    """Give onnxruntime's own exceptions; they have no common base."""
    native = _runtime().capi.onnxruntime_pybind11_state
    return tuple(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception))


@cache
def _load_errors() -> tuple[type[Exception], ...]:
    """All that making a session may raise: the binding and its Python wrapper add plain ones."""
    return (*native_errors(), RuntimeError, ValueError, MemoryError)


@cache
def _run_errors() -> tuple[type[Exception], ...]:
    return (*_load_errors(), TypeError)


def _session_options(target: Target, *, optimise: bool, chosen: SessionOptions | None = None) -> Any:
    runtime, chosen = _runtime(), chosen or default_options(target)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = chosen.threads
    options.inter_op_num_threads = chosen.inter_op_threads
    mode = runtime.ExecutionMode
    options.execution_mode = mode.ORT_PARALLEL if chosen.execution_mode == "parallel" else mode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors
    options.enable_mem_pattern = PROVIDERS[target.provider].memory_pattern
    options.graph_optimization_level = _level(chosen.graph_optimization if optimise else "disabled")
    # Pool threads spin within a run as they do by default, but not after it: they would disturb the other network's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not chosen.spinning:
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def _level(name: str) -> Any:
    level = _runtime().GraphOptimizationLevel
    return {
        "disabled": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }[name]


def _open(model: ModelSource, target: Target, options: Any) -> Session:
    runtime = _runtime()
    source = str(model) if isinstance(model, Path) else model
    before = _threads()
    try:
        chosen = _choose_providers(target, options)
        inner = runtime.InferenceSession(source, options, providers=chosen, enable_fallback=False)
    except _load_errors() as error:
        raise explain_load(error) from error
    inner.disable_fallback()
    opened = Session(inner, target, _threads() - before)
    if PROVIDERS[target.provider].runtime not in opened.providers:
        raise TargetUnavailableError(f"The session fell back from {target.provider} to {', '.join(opened.providers)}")
    return opened


def _choose_providers(target: Target, options: Any) -> list[tuple[str, dict[str, str]]] | None:
    """Give the providers' list; None when the options already hold a plugin's devices."""
    provider = PROVIDERS[target.provider]
    if target.provider == "cpu":
        return [(provider.runtime, {})]
    built_in = _built_in()
    if provider.runtime not in built_in and (devices := _plugin_devices(provider.runtime)):
        # The devices say what `device_type` says to a built-in provider.
        wanted = {key: value for key, value in provider.options(target).items() if key != "device_type"}
        kind = [device for device in devices if device.device.type.name.lower() == provider.device]
        options.add_provider_for_devices(kind or devices, wanted)
        return None
    between: list[tuple[str, dict[str, str]]] = [(name, {}) for name in provider.before_cpu if name in built_in]
    return [(provider.runtime, provider.options(target)), *between, (PROVIDERS["cpu"].runtime, {})]


def _plugin_devices(runtime_name: str) -> list[Any]:
    runtime = _runtime()
    if not hasattr(runtime, "get_ep_devices"):
        return []
    return [device for device in runtime.get_ep_devices() if device.ep_name == runtime_name]


def _offered() -> frozenset[str]:
    runtime = _runtime()
    plugins = [device.ep_name for device in runtime.get_ep_devices()] if hasattr(runtime, "get_ep_devices") else []
    return frozenset((*runtime.get_available_providers(), *plugins))


def _built_in() -> frozenset[str]:
    """Give the providers that are compiled in; a registered plugin's name is listed beside them."""
    return frozenset(_runtime().get_available_providers()) - _registered


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


_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


def _port(argument: Any) -> Port:
    kind: str = argument.type
    shape = tuple(argument.shape) if kind.startswith("tensor(") else ()
    return Port(argument.name, _numpy_type(kind), shape)


def _numpy_type(kind: str) -> np.dtype[Any] | None:
    if not kind.startswith("tensor("):
        return None
    name = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_NUMPY_NAMES.get(name, name))
    except TypeError:
        import ml_dtypes  # noqa: PLC0415  # only for the types that numpy lacks: bfloat16, float8

        extra = getattr(ml_dtypes, {"float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2"}.get(name, name), None)
        return None if extra is None else np.dtype(extra)


def _bytes_of(model: ModelSource) -> int:
    if isinstance(model, bytes):
        return len(model)
    from engine.measure.size import stored_bytes  # noqa: PLC0415  # it reads the network; most sessions need no size

    return stored_bytes(model)


def _threads() -> frozenset[str]:
    try:
        return frozenset(task.name for task in Path("/proc/self/task").iterdir())
    except OSError:
        return frozenset()
