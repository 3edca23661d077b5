"""Arrays of numpy (`.npy`) as one dataset: a file for each input, or a folder with a file for each sample."""

from collections.abc import Mapping
from pathlib import Path

from onnxpress.dataset_conversion.class_folders import find
from onnxpress.dataset_conversion.declaration import Converted, declaration
from onnxpress.errors import UsageError
from onnxpress.npz import NpyHeader, NpzWriter, read_npy_header


def npy_to_npz(sources: Mapping[str, Path], target: Path) -> Converted:
    """Write arrays under the names of the network's inputs (and `label`), values as they are.

    A source is a `.npy` whose first axis counts the samples, or a folder with a `.npy` for each sample, in the order of their
    names; subfolders are classes and become the label. Raises UsageError for unreadable files, and where shapes, types or
    numbers of samples differ.
    """
    if not sources:
        raise UsageError("name at least one array: INPUT=FILE.npy")
    counts: dict[str, int] = {}
    told: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    with NpzWriter(target) as npz:
        for name, source in sources.items():
            if source.is_dir():
                counts[name], told[name], named = _add_folder(
                    npz, name, source, labels="label" not in sources and not classes
                )
                classes = classes or named
            else:
                header = _header(source)
                if not header.shape:
                    raise UsageError(f"{source} holds a single number; its first axis must count the samples")
                npz.take(name, source, header)
                counts[name], told[name] = header.shape[0], _told(header.descr, header.shape)
        if len(set(counts.values())) > 1:
            differing = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(f"the arrays differ in the number of samples: {differing}")
        listed = "; ".join(f"`{name}` {each}" for name, each in told.items())
        summary = f"{next(iter(counts.values()))} samples of arrays as they are: {listed}."
        said = declaration("arrays", summary, {"arrays": told}, classes)
        npz.declare(said)
    return Converted(target, next(iter(counts.values())), classes, said)


def _add_folder(npz: NpzWriter, name: str, folder: Path, *, labels: bool) -> tuple[int, str, tuple[str, ...]]:
    found = find(folder, {".npy"}, "arrays")
    paths = [path for path, _ in found.files]
    first = _header(paths[0])
    for path in paths:
        header = _header(path)
        if (header.shape, header.descr, header.fortran_order) != (first.shape, first.descr, first.fortran_order):
            raise UsageError(
                f"{path} is {_told(header.descr, header.shape)}, but {paths[0]} is {_told(first.descr, first.shape)};"
                " samples of one array have one shape, type and order"
            )
    if first.fortran_order and len(first.shape) > 1:
        raise UsageError(f"{paths[0]} is in Fortran's order; save it with numpy.ascontiguousarray")
    npz.stack(name, paths, first)
    if labels:
        found.write(npz)
    return len(paths), _told(first.descr, (len(paths), *first.shape)), found.classes if labels else ()


def _header(path: Path) -> NpyHeader:
    try:
        return read_npy_header(path)
    except OSError as error:
        raise UsageError(f"{path} is not readable: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _told(descr: str, shape: tuple[int, ...]) -> str:
    kinds = {"b": "bool", "i": "int", "u": "uint", "f": "float"}
    bits = "" if descr[1] == "b" else str(8 * int(descr[2:]))
    return f"{kinds[descr[1]]}{bits} {list(shape)}"
