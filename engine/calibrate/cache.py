"""Statistics on disk, so that a job that starts again does not calibrate again."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from engine.calibrate.statistics import ChannelMean, ChannelRange, Histogram, Range
from engine.contract import Observe, Samples
from engine.data.batches import Alone, sample_bytes
from engine.graph import io
from engine.runtime import library
from engine.solve.gram import Moments
from engine.target import Target

_KINDS: Mapping[str, type] = {
    "min_max": Range,
    "moving_average": Range,
    "histogram": Histogram,
    "channel_range": ChannelRange,
    "channel_mean": ChannelMean,
    "second_moment": Moments,
}
_BATCH_BYTES = 16 << 20
_LARGEST_BATCH = 64
_CHUNK_BYTES = 1 << 20


def digest_of(samples: Samples) -> str:
    """Give a digest of all samples. It reads them all: a job needs it once."""
    # One sample after another: the digest may not depend on how they are cut into batches.
    hashes: dict[str, Any] = {}
    first = next(iter(samples.batches(1)), {})
    size = max(1, min(_LARGEST_BATCH, _BATCH_BYTES // max(sample_bytes(first), 1))) if first else 1
    for feed in samples.batches(size):
        for name, array in feed.items():
            for row in [array] if isinstance(feed, Alone) else array:
                hashes.setdefault(name, hashlib.sha256()).update(repr((row.shape, row.dtype)).encode() + row.tobytes())
    digest = hashlib.sha256(repr(len(samples)).encode())
    for name in sorted(hashes):
        digest.update(name.encode() + hashes[name].digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class StoredStatistics:
    """Statistics of some samples, in a folder that survives an attempt: each file is named by all that it depends on."""

    folder: Path
    # Of the samples.
    digest: str

    def file(self, network: Path, requests: Sequence[Observe], target: Target) -> Path:
        """Give the file of what was requested of a network, be it there or not."""
        digest = hashlib.sha256(self.digest.encode())
        digest.update(repr((library.runtime_version(), target, *requests)).encode())
        for file in (network, *io.external_files(network)):
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return self.folder / f"observed-{digest.hexdigest()[:32]}.npz"


def read(file: Path, requests: Sequence[Observe]) -> dict[Observe, Any] | None:
    """Give statistics that were stored under this name."""
    if not file.exists():
        return None
    found: dict[Observe, Any] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for number, request in enumerate(requests):
            kind = _KINDS[request.statistic]
            parts = {each.name: arrays.get(f"{number}.{each.name}") for each in fields(kind)}
            missing = any(part is None for part in parts.values())
            found[request] = None if missing else kind(**{name: _value(part) for name, part in parts.items()})
    return found


def write(file: Path, requests: Sequence[Observe], found: Mapping[Observe, Any]) -> None:
    """Store statistics; the file is there only when it is complete."""
    arrays = {
        f"{number}.{each.name}": np.asarray(getattr(found[request], each.name))
        for number, request in enumerate(requests)
        if found[request] is not None
        for each in fields(_KINDS[request.statistic])
    }
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(file)


def _value(array: Any) -> Any:
    return array.item() if array.ndim == 0 else array
