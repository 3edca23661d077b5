"""Named arrays for calibration and evaluation: what an untrusted `.npz` holds, and how samples are split and fed."""

import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from engine.errors import DatasetInvalidError
from engine.inspection import ArrayInfo, DatasetInspection, TensorInfo
from engine.spec import TaskMetric

LABEL = "label"
UNLABELLED = -1
CALIBRATION_SAMPLES = 512
_SEED = 0
_MOST_BYTES = 64 << 30
_MOST_ARRAYS = 256
# Small archives may be packed as tightly as they like: masks of ones are.
_UNPACKED_FREE_BYTES = 256 << 20
_MOST_RATIO = 100
_CHUNK_BYTES = 4 << 20
_KINDS = "biuf"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def inspect(path: Path, *, metric: str | None = None) -> DatasetInspection:
    """Check an untrusted `.npz` and say what it holds; raises DatasetInvalidError."""
    if metric is not None and metric not in get_args(TaskMetric):
        raise DatasetInvalidError(
            f"The metric `{metric}` is not known.", hint=f"Known are {', '.join(get_args(TaskMetric))}."
        )
    with _open(path) as archive:
        headers = {name: _checked(archive, name) for name in _members(archive, path.stat().st_size)}
        counts = {header.shape[0] for header in headers.values() if header.shape}
        scalars = sorted(name for name, header in headers.items() if not header.shape)
        if scalars:
            raise DatasetInvalidError(
                f"Array `{scalars[0]}` is a single number; its first axis must count the samples."
            )
        if len(counts) != 1:
            sizes = ", ".join(f"{name} {header.shape[0]}" for name, header in sorted(headers.items()))
            raise DatasetInvalidError(f"The arrays differ in the number of samples (first axis): {sizes}.")
        samples = counts.pop()
        if samples == 0:
            raise DatasetInvalidError("The dataset holds no samples.")
        if set(headers) == {LABEL}:
            raise DatasetInvalidError("The dataset holds labels, but no inputs.")
        labelled = _count_labelled(archive, headers)
    found = {
        name: ArrayInfo(name=name, dtype=header.dtype.name, shape=header.shape) for name, header in headers.items()
    }
    label = found.pop(LABEL, None)
    classes = label is not None and len(label.shape) == 1 and np.dtype(label.dtype).kind in "iu"
    return DatasetInspection(
        arrays=tuple(found.values()),
        label=label,
        samples=samples,
        labelled=labelled,
        unlabelled=samples - labelled,
        metric=metric if label is not None and metric is not None else "top1" if classes else None,
    )


class Dataset:
    """A checked `.npz`, opened for use: stored arrays are mapped from the file, packed large ones unpacked beside it."""

    def __init__(self, arrays: Mapping[str, Array], label: Array | None) -> None:
        self.arrays = dict(arrays)
        self.label = label

    @classmethod
    def open(cls, path: Path, scratch: Path) -> Self:
        """Open the arrays without reading them into memory where that can be avoided."""
        with _open(path) as archive:
            arrays = {name: _mapped(archive, path, name, scratch) for name in _members(archive, path.stat().st_size)}
        label = arrays.pop(LABEL, None)
        return cls(arrays, label)

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(next(iter(self.arrays.values())))

    def split(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give the indices of the samples that calibrate and of those held out to judge.

        Where some samples are unlabelled and some labelled, the unlabelled calibrate. Otherwise a seeded draw of at most
        512 and at most half of the samples calibrates.
        """
        if self.label is not None:
            labelled = is_labelled(self.label)
            if labelled.any() and not labelled.all():
                return np.flatnonzero(~labelled), np.flatnonzero(labelled)
        order = np.random.default_rng(_SEED).permutation(len(self))
        count = min(CALIBRATION_SAMPLES, len(self) // 2)
        if count == 0:
            return order, order
        return np.sort(order[:count]), np.sort(order[count:])

    def samples(self, inputs: tuple[TensorInfo, ...], indices: npt.NDArray[np.int64]) -> "Samples":
        """Give some of the samples as feeds for a network with these inputs."""
        wanted = {tensor.name: _dtype(tensor.dtype) for tensor in inputs}
        return Samples({name: self.arrays[name] for name in wanted}, wanted, indices)

    def labels(self, indices: npt.NDArray[np.int64]) -> Array | None:
        """Give the labels of some of the samples; None where they have none."""
        if self.label is None:
            return None
        chosen = np.asarray(self.label[indices])
        return chosen if bool(is_labelled(chosen).all()) else None


class Samples:
    """Some samples of a dataset; batches are cast by value to the types that the network takes."""

    def __init__(self, arrays: Mapping[str, Array], dtypes: Mapping[str, Any], indices: npt.NDArray[np.int64]) -> None:
        self._arrays = arrays
        self._dtypes = dtypes
        self._indices = indices

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self._indices)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield all samples in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self._indices), size):
            chosen = self._indices[start : start + size]
            yield {
                name: np.ascontiguousarray(array[chosen]).astype(self._dtypes[name], copy=False)
                for name, array in self._arrays.items()
            }


def random_samples(
    inputs: tuple[TensorInfo, ...], count: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Samples:
    """Make samples where there are no data: normal numbers for float inputs, zeros and ones for the others.

    They are only good for telling whether a lossless step changed a network. Open axes have size 1, or 8 for spatial ones.
    """
    draw = np.random.default_rng(_SEED)
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        shape = (shapes or {}).get(tensor.name) or _concrete(tensor)
        full = (count, *shape[1:])
        dtype = _dtype(tensor.dtype)
        is_float = tensor.dtype in {"float16", "bfloat16", "float32", "float64"}
        arrays[tensor.name] = (
            draw.standard_normal(full).astype(dtype) if is_float else draw.integers(0, 2, full).astype(dtype)
        )
    dtypes = {tensor.name: _dtype(tensor.dtype) for tensor in inputs}
    return Samples(arrays, dtypes, np.arange(count))


def is_labelled(label: Array) -> npt.NDArray[np.bool_]:
    """Say which labels are labels: among class numbers -1 means none."""
    if label.ndim == 1 and label.dtype.kind == "i":
        return np.asarray(label != UNLABELLED)
    return np.ones(len(label), dtype=np.bool_)


def _concrete(tensor: TensorInfo) -> tuple[int, ...]:
    shape = tensor.shape or (1,)
    return tuple(size if isinstance(size, int) else 8 if axis >= 2 else 1 for axis, size in enumerate(shape)) or (1,)


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415  # only for the one type that numpy lacks

        return ml_dtypes.bfloat16
    return np.dtype(name)


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DatasetInvalidError(
            "The file is not an .npz archive.", hint="Write it with numpy.savez or numpy.savez_compressed."
        ) from error
    with archive:
        try:
            yield archive
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, OSError) as error:
            raise DatasetInvalidError("The archive is damaged or truncated.") from error
        except zlib.error as error:
            raise DatasetInvalidError("The archive's compressed data are damaged.") from error


def _members(archive: zipfile.ZipFile, packed: int) -> list[str]:
    """Give the names of the arrays, or refuse an archive that is not what numpy writes."""
    entries = archive.infolist()
    if not entries:
        raise DatasetInvalidError("The archive holds no arrays.")
    if len(entries) > _MOST_ARRAYS:
        raise DatasetInvalidError(f"The archive holds {len(entries)} members; {_MOST_ARRAYS} are the limit.")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise DatasetInvalidError("The archive names a member twice.")
    for entry in entries:
        _check_entry(entry)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MOST_BYTES:
        raise DatasetInvalidError(f"The arrays take {unpacked} bytes; {_MOST_BYTES} are the limit.")
    if unpacked > max(_UNPACKED_FREE_BYTES, _MOST_RATIO * packed):
        raise DatasetInvalidError("The archive unpacks to more than 100 times its size.")
    spans = sorted((entry.header_offset, entry.header_offset + entry.compress_size) for entry in entries)
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        raise DatasetInvalidError("Members of the archive overlap.")
    return [name.removesuffix(".npy") for name in names]


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = PurePosixPath(name).parts
    if not name.endswith(".npy") or name == ".npy":
        raise DatasetInvalidError("The archive holds a member that is not an array (.npy).")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in entry.orig_filename:
        raise DatasetInvalidError("The archive holds a member with a name that leaves the archive.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DatasetInvalidError("The archive holds a symbolic link.")
    if entry.flag_bits & 1:
        raise DatasetInvalidError("The archive is encrypted.")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DatasetInvalidError("The archive is compressed by a method that numpy does not write.")


def _header(stream: IO[bytes], name: str) -> _Header:
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(stream)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise DatasetInvalidError(f"`{name}` is not a numpy array.") from error
    if dtype.kind not in _KINDS or dtype.hasobject or dtype.itemsize > 8:
        raise DatasetInvalidError(f"Array `{name}` has type {dtype}; only numbers and booleans are taken.")
    if any(size < 0 for size in shape):
        raise DatasetInvalidError(f"Array `{name}` has a negative size.")
    return _Header(tuple(int(size) for size in shape), fortran_order, dtype, stream.tell())


def _checked(archive: zipfile.ZipFile, name: str) -> _Header:
    """Read an array once from end to end: its length, its checksum, and that all numbers are finite."""
    entry = archive.getinfo(name + ".npy")
    with archive.open(entry) as stream:
        header = _header(stream, name)
        if header.offset + header.nbytes != entry.file_size:
            raise DatasetInvalidError(f"Array `{name}` is truncated or has bytes behind it.")
        chunk = max(1, _CHUNK_BYTES // header.dtype.itemsize) * header.dtype.itemsize
        while data := stream.read(chunk):
            if header.dtype.kind == "f" and not np.isfinite(np.frombuffer(data, header.dtype)).all():
                raise DatasetInvalidError(f"Array `{name}` holds NaN or infinity.")
    return header


def _count_labelled(archive: zipfile.ZipFile, headers: Mapping[str, _Header]) -> int:
    if LABEL not in headers:
        return 0
    header = headers[LABEL]
    if len(header.shape) != 1 or header.dtype.kind != "i":
        return header.shape[0]
    counted = 0
    with archive.open(LABEL + ".npy") as stream:
        _header(stream, LABEL)
        while data := stream.read(_CHUNK_BYTES):
            counted += int((np.frombuffer(data, header.dtype) != UNLABELLED).sum())
    return counted


def _mapped(archive: zipfile.ZipFile, path: Path, name: str, scratch: Path) -> Array:
    entry = archive.getinfo(name + ".npy")
    with archive.open(entry) as stream:
        header = _header(stream, name)
        order: Literal["F", "C"] = "F" if header.fortran_order else "C"
        if entry.compress_type == zipfile.ZIP_STORED and header.nbytes:
            place = _data_offset(path, entry) + header.offset
            return np.memmap(path, header.dtype, "r", place, header.shape, order)
        if header.nbytes <= _UNPACKED_FREE_BYTES // 4:
            return np.frombuffer(stream.read(header.nbytes), header.dtype).reshape(header.shape, order=order)
        with tempfile.NamedTemporaryFile(dir=scratch, prefix="array-", delete=False) as unpacked:
            while data := stream.read(_CHUNK_BYTES):
                unpacked.write(data)
    return np.memmap(unpacked.name, header.dtype, "r", 0, header.shape, order)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Find where a stored member's bytes start: after its local header, whose two lengths may differ from the directory's."""
    with path.open("rb") as stream:
        stream.seek(entry.header_offset + 26)
        lengths = stream.read(4)
    return entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
