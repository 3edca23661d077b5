"""What the teacher says of a batch: by onnxruntime, or by its twin where that runs on a GPU."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import with_outputs
from engine.graph import io
from engine.runtime import sessions
from engine.target import Target
from engine.train.framework import Tensor, torch
from engine.train.twin.module import Twin
from engine.train.twin.tensors import from_numpy

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

_MOST_KEPT_BYTES = 128 << 20


class Teacher:
    """A network that is asked, and never changed.

    Args:
        model: the network.
        wanted: what is asked for: outputs, or tensors inside of its main graph.
        target: what it runs on. Its provider is only used where it is the CPU's.
        device: where the student lives.
    """

    def __init__(self, model: ir.Model, wanted: Sequence[str], target: Target, device: Any) -> None:
        self._wanted = tuple(wanted)
        self._device = device
        self._kept: dict[int, dict[str, Array]] = {}
        self._room = _MOST_KEPT_BYTES
        self._twin = _on_gpu(model, device)
        if self._twin is None:
            self._session = _session(with_outputs(model, self._wanted), target)

    def __call__(self, feed: Feed) -> dict[str, Tensor]:
        """Give what it says."""
        if self._twin is not None:
            with torch.no_grad():
                return self._twin.run(self._twin.feed(feed), self._wanted)
        return self._on_device(self.arrays(feed))

    def arrays(self, feed: Feed) -> dict[str, Array]:
        """Give the same as arrays."""
        if self._twin is not None:
            return {name: value.cpu().numpy() for name, value in self(feed).items()}
        said = self._session.run(feed)
        return {name: np.asarray(said[name]) for name in self._wanted}

    def of_samples(self, places: npt.NDArray[np.int64], feed: Feed) -> dict[str, Tensor]:
        """Give what it says of samples that come again and again as they are: it is asked once, while there is room."""
        if self._twin is not None or not all(_counts(array, len(places)) for array in feed.values()):
            return self(feed)
        if all(int(place) in self._kept for place in places):
            kept = [self._kept[int(place)] for place in places]
            return self._on_device({name: np.stack([each[name] for each in kept]) for name in self._wanted})
        said = self.arrays(feed)
        if all(_counts(array, len(places)) for array in said.values()):
            for index, place in enumerate(places):
                self._keep(int(place), {name: array[index].copy() for name, array in said.items()})
        return self._on_device(said)

    def _keep(self, place: int, said: dict[str, Array]) -> None:
        size = sum(array.nbytes for array in said.values())
        if place not in self._kept and size <= self._room:
            self._kept[place] = said
            self._room -= size

    def _on_device(self, said: Mapping[str, Array]) -> dict[str, Tensor]:
        return {
            name: from_numpy(array, torch.float32 if array.dtype.kind in "fV" else torch.int64).to(self._device)
            for name, array in said.items()
        }


def _counts(array: Array, samples: int) -> bool:
    return array.ndim > 0 and len(array) == samples


def _on_gpu(model: ir.Model, device: Any) -> Twin | None:
    if device.type == "cpu":
        return None
    twin = Twin.of(model, trainable=(), device=device)
    return None if twin.unsupported() else twin


def _session(model: ir.Model, target: Target) -> sessions.Session:
    if target.provider != "cpu":
        target = Target(threads=target.threads)
    with tempfile.TemporaryDirectory(prefix="teacher-") as folder:
        path = Path(folder, "teacher.onnx")
        io.save(model, path)
        return sessions.session(path, target)
