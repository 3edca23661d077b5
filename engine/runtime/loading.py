"""Networks loaded into onnxruntime, whether or not the target has been proven; whoever is not of this room asks `sessions`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import TargetUnavailableError
from engine.report.run_facts import SessionOptions
from engine.runtime.device_binding import bind_on_device, unrecorded
from engine.runtime.failures import explain_load, explain_run
from engine.runtime.library import load_errors, onnxruntime_module, run_errors
from engine.runtime.plugins import built_in, plugin_devices
from engine.runtime.providers import PROVIDERS
from engine.target import Target

ModelSource = bytes | Path


Feed = Mapping[str, np.ndarray]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Port:
    """An input or output of a session. `dtype` is None where it is not a tensor; open axes are names or None."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


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
        provider = PROVIDERS[target.provider]
        self._memory = provider.memory if target.inputs_on_device or captures(target) else None
        self._captures = captures(target)

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name. Whoever keeps one asks for it as `owned`."""
        try:
            # A recording would be played back on the arrays that it was made with.
            options = unrecorded() if self._captures else None
            values = self._inner.run(self._output_names, self._fitted(feed), options)
        except run_errors() as error:
            raise explain_run(error) from error
        return dict(zip(self._output_names, values, strict=True))

    def bind(self, feed: Feed) -> Callable[[], object]:
        """Give a call that runs the network on this feed with nothing to convert or allocate in Python; it was run once.

        Made for timing: the call raises onnxruntime's own exceptions. Where the target says so, inputs and outputs lie in the
        device's memory.
        """
        fitted = self._fitted(feed)
        call: Callable[[], object] | None = None
        try:
            if all(port.dtype is not None and port.dtype != np.dtype(object) for port in (*self.inputs, *self.outputs)):
                in_memory = self._memory
                call = self._bound(fitted) if in_memory is None else self._bound_on_device(fitted, in_memory)
            if call is None:
                call = partial(self._inner.run, self._output_names, fitted, unrecorded() if self._captures else None)
                call()
        except run_errors() as error:
            raise explain_run(error) from error
        return call

    def _bound(self, fitted: Feed) -> Callable[[], object] | None:
        """Give a run that keeps its arrays; None where the network gives other shapes than it declares.

        onnxruntime only warns of such outputs, but refuses a second run into what the first one has allocated for them.
        """
        binding = self._inner.io_binding()
        for name, array in fitted.items():
            # ascontiguousarray would give a single number an axis.
            binding.bind_cpu_input(name, np.require(array, requirements="C"))
        for name in self._output_names:
            binding.bind_output(name)
        call = partial(self._inner.run_with_iobinding, binding)
        call()
        found = zip(self.outputs, binding.get_outputs(), strict=True)
        return call if all(_as_declared(port, value.shape()) for port, value in found) else None

    def _bound_on_device(self, fitted: Feed, memory: str) -> Callable[[], object] | None:
        """Give a run whose inputs and outputs stay in the device's memory; None where outputs have other shapes than declared."""
        call = bind_on_device(self._inner, fitted, self._output_names, memory, captures=self._captures)
        found = zip(self.outputs, call.binding.get_outputs(), strict=True)
        return call if all(_as_declared(port, value.shape()) for port, value in found) else None

    def _fitted(self, feed: Feed) -> dict[str, np.ndarray]:
        """Give float arrays the width that the network wants: one of a pair may take 16 bits where the other takes 32."""
        wanted = {port.name: port.dtype for port in self.inputs if port.dtype is not None and port.dtype.name in FLOATS}
        return {
            name: array.astype(wanted[name], copy=False) if name in wanted and array.dtype.name in FLOATS else array
            for name, array in feed.items()
        }


def owned(output: Any) -> Any:
    """Give an output of a run that may be kept, in memory of its own.

    As a run gives it, it lies in the session's arena: one number of it holds all that the session's runs have needed in
    memory, long after the session itself was let go of.
    """
    if isinstance(output, list):
        return [owned(each) for each in output]
    return np.array(output) if isinstance(output, np.ndarray) and not output.flags.owndata else output


def _as_declared(port: Port, shape: Sequence[int]) -> bool:
    return len(shape) == len(port.shape) and all(
        not isinstance(declared, int) or declared == size for declared, size in zip(port.shape, shape, strict=True)
    )


def default_options(target: Target) -> SessionOptions:
    """Give the session options that a target has by itself."""
    return SessionOptions(
        threads=target.threads,
        provider_options=target.provider_options,
        inputs_on_device=target.inputs_on_device,
    )


def captures(target: Target) -> bool:
    """Say whether runs on a target are recorded and played back."""
    name = PROVIDERS[target.provider].captures
    return name is not None and target.provider_options.get(name) == "1"


def load(model: ModelSource, target: Target, options: Any) -> Session:
    """Load a network, or raise: TargetUnavailableError rather than a silent run on the CPU. `options` are onnxruntime's own."""
    runtime = onnxruntime_module()
    source = str(model) if isinstance(model, Path) else model
    before = _threads()
    try:
        chosen = _choose_providers(target, options)
        inner = runtime.InferenceSession(source, options, providers=chosen, enable_fallback=False)
    except load_errors() as error:
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
    compiled_in = built_in()
    if provider.runtime not in compiled_in and (devices := plugin_devices(provider.runtime)):
        # The devices say what `device_type` says to a built-in provider.
        wanted = {key: value for key, value in provider.options(target).items() if key != "device_type"}
        kind = [device for device in devices if device.device.type.name.lower() == provider.device]
        # One device: some plugins take no more, and figures are of one.
        options.add_provider_for_devices((kind or devices)[:1], wanted)
        return None
    between: list[tuple[str, dict[str, str]]] = [
        (name, {"device_id": "0"}) for name in provider.before_cpu if name in compiled_in
    ]
    return [(provider.runtime, provider.options(target)), *between, (PROVIDERS["cpu"].runtime, {})]


def session_options(target: Target, *, optimise: bool, chosen: SessionOptions | None = None) -> Any:
    """Make onnxruntime's own options for a target, or for the `chosen` ones; `optimise=False` leaves the graph as it is."""
    runtime, chosen = onnxruntime_module(), chosen or default_options(target)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = chosen.threads
    options.inter_op_num_threads = chosen.inter_op_threads
    mode = runtime.ExecutionMode
    options.execution_mode = mode.ORT_PARALLEL if chosen.execution_mode == "parallel" else mode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Fatal ones: errors are raised too, and where something is only tried nobody should read of it on the terminal.
    options.log_severity_level = 4
    options.enable_mem_pattern = PROVIDERS[target.provider].memory_pattern
    options.graph_optimization_level = _level(chosen.graph_optimization if optimise else "disabled")
    for axis, size in chosen.fixed_axes.items():
        options.add_free_dimension_override_by_name(axis, size)
    # Pool threads spin within a run as they do by default, but not after it: they would disturb the other network's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not chosen.spinning:
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def _level(name: str) -> Any:
    level = onnxruntime_module().GraphOptimizationLevel
    return {
        "disabled": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }[name]


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


def _threads() -> frozenset[str]:
    try:
        return frozenset(task.name for task in Path("/proc/self/task").iterdir())
    except OSError:
        return frozenset()
