"""Runs whose inputs and outputs stay in a device's memory, and runs that the device plays back without being told each kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from engine.runtime.library import onnxruntime_module

# Names the recording that a run makes or plays back; onnxruntime records nothing for a run that is called -1.
_RECORDING = "gpu_graph_id"
_NONE = "-1"
_numbers = count(1)


@dataclass(frozen=True)
class DeviceRun:
    """A prepared run; it has ended when the call returns."""

    session: Any
    binding: Any
    options: Any

    def __call__(self) -> None:
        """Run."""
        self.session.run_with_iobinding(self.binding, self.options)
        self.binding.synchronize_outputs()

    def outputs(self) -> list[np.ndarray]:
        """Give what the last run left in the device's memory."""
        return list(self.binding.copy_outputs_to_cpu())


def bind_on_device(
    session: Any, feed: Mapping[str, np.ndarray], outputs: Sequence[str], memory: str, *, captures: bool
) -> DeviceRun:
    """Put a feed into the device's memory, and run a network on it once. `session` is onnxruntime's own.

    Where runs are recorded (`captures`), inputs and outputs keep their place, because a recording goes to these places whatever
    is bound later; each prepared run gets a recording of its own.
    """
    runtime = onnxruntime_module()
    binding = session.io_binding()
    for name, array in feed.items():
        # ascontiguousarray would give a single number an axis.
        held = runtime.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"), memory, 0)
        binding.bind_ortvalue_input(name, held)
    for name in outputs:
        binding.bind_output(name, memory)
    first = DeviceRun(session, binding, unrecorded() if captures else None)
    first()
    if not captures:
        return first
    made = binding.get_outputs()
    binding.clear_binding_outputs()
    for name, value in zip(outputs, made, strict=True):
        binding.bind_ortvalue_output(name, value)
    recorded = DeviceRun(session, binding, _run_options(str(next(_numbers))))
    recorded()
    return recorded


def unrecorded() -> Any:
    """Give the options of a run that is neither recorded nor played back."""
    return _run_options(_NONE)


def _run_options(recording: str) -> Any:
    options = onnxruntime_module().RunOptions()
    options.add_run_config_entry(_RECORDING, recording)
    return options
