"""Folders whose subfolders are classes (the layout of torchvision's ImageFolder), for files of any kind."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

UNLABELLED = -1


@dataclass(frozen=True)
class Labelled:
    """The files of a folder in order, with the number of each one's class; -1 where it has none."""

    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]

    def write(self, npz: NpzWriter, repeats: Sequence[int] | None = None) -> None:
        """Write the labels, where there are any; `repeats` says how many samples came of each file."""
        if self.classes:
            times = [1] * len(self.files) if repeats is None else repeats
            numbers = [number for (_, number), count in zip(self.files, times, strict=True) for _ in range(count)]
            npz.add("label", "int64", (len(numbers),), (one.to_bytes(8, "little", signed=True) for one in numbers))

    @property
    def told(self) -> str:
        """Say in words where labels come from."""
        if not self.classes:
            return "No labels."
        none = sum(number == UNLABELLED for _, number in self.files)
        rest = f"; {none} files beside the subfolders have no label, and calibrate" if none else ""
        return f"Labels: the {len(self.classes)} subfolders, numbered from 0 in the order of `classes`{rest}."


def find(folder: Path, endings: Collection[str], what: str, classes: Sequence[str] | None = None) -> Labelled:
    """Find files by their endings; subfolders that hold some are classes, in alphabetical order unless `classes` says another.

    Files within a subfolder are found at any depth. Raises UsageError where there are none, or a class is unknown.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    found = {path.name: _below(path, endings) for path in sorted(folder.iterdir()) if path.is_dir()}
    full = {name: files for name, files in found.items() if files}
    names = tuple(classes) if classes is not None else tuple(full)
    unknown = sorted(set(full) - set(names))
    if unknown:
        raise UsageError(
            f"{folder / unknown[0]} is a subfolder, but {unknown[0]!r} is not among the classes that were named"
        )
    files = [(path, number) for number, name in enumerate(names) for path in full.get(name, ())]
    files += [
        (path, UNLABELLED) for path in sorted(folder.iterdir()) if path.suffix.lower() in endings and path.is_file()
    ]
    if not files:
        raise UsageError(f"{folder} holds no {what} ({', '.join(sorted(endings))})")
    return Labelled(tuple(files), names if full else ())


def _below(folder: Path, endings: Collection[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
