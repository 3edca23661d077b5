"""What the original said, run by run: in memory up to a point, beyond that in files."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.measure.metrics import Array

_MEMORY_FOR_OUTPUTS = 64 << 20


class Folder:
    """A folder for files that is made when the first one comes, and removed with everything that is in it."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._cleaner: weakref.finalize[Any, Any] | None = None
        self._path: Path | None = None
        self._files = 0
        # Bytes of all outputs that are held in memory.
        self.held = 0

    def save(self, array: Array) -> Path:
        """Write an array and give its file."""
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="original-outputs-", dir=self._scratch))
            self._cleaner = weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        path = self._path / f"{self._files}.npy"
        self._files += 1
        np.save(path, array, allow_pickle=False)
        return path

    def close(self) -> None:
        """Remove the files."""
        if self._cleaner:
            self._cleaner()


class KeptOutput:
    """One output of the original over the runs, up to `most` bytes; what comes after is not kept."""

    def __init__(self, folder: Folder, most: int | None = None) -> None:
        self._folder, self.most = folder, most
        self._runs: list[Array | Path] = []
        self._bytes = 0
        self._full = False
        self.shapes: list[tuple[int, ...]] = []

    def append(self, output: Array) -> None:
        """Keep a run's output."""
        self.shapes.append(output.shape)
        self._full = self._full or (self.most is not None and bool(self._runs) and self._bytes > self.most)
        if self._full:
            return
        self._bytes += output.nbytes
        if self._folder.held + output.nbytes <= _MEMORY_FOR_OUTPUTS:
            self._folder.held += output.nbytes
            self._runs.append(np.array(output))
        else:
            self._runs.append(self._folder.save(output))

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int) -> Array:
        held = self._runs[index]
        return np.load(held, allow_pickle=False) if isinstance(held, Path) else held

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))
