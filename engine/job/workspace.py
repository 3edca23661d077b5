"""A job's folder: its datasets and networks as they lie there, and files that are whole or not there."""

import json
import os
import shutil
from pathlib import Path

from engine.data.containers import find
from engine.data.dataset import Dataset, inspect_dataset
from engine.graph import io
from engine.inspection import DatasetInspection
from engine.outputs import OutputDeclaration, read_declarations


def open_dataset(folder: Path, scratch: Path) -> tuple[Dataset | None, DatasetInspection | None]:
    """Give the dataset in a folder and what it is, None and None where there is none; raises DatasetInvalidError."""
    path = find(folder)
    if path is None:
        return None, None
    declared = folder / "dataset.json"
    metric = json.loads(declared.read_bytes()).get("metric") if declared.exists() else None
    described = inspect_dataset(path, metric=metric)
    return Dataset.open(path, scratch, metric=described.metric), described


def declared_outputs(folder: Path) -> dict[str, OutputDeclaration]:
    """Give what the job's dataset declares of the network's outputs; raises DatasetInvalidError where it is wrong."""
    declared = folder / "dataset.json"
    body = json.loads(declared.read_bytes()) if declared.exists() else {}
    return read_declarations(body.get("outputs") or {})


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash of the machine."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


def copy_network(source: Path, to: Path) -> None:
    """Copy a network; its external data keep their names, for it refers to them."""
    for file in io.external_files(source):
        shutil.copyfile(file, to.with_name(file.name))
    shutil.copyfile(source, to)


def remove_network(path: Path) -> None:
    """Remove a network and its external data, if it is there."""
    if path.exists():
        for file in io.external_files(path):
            file.unlink(missing_ok=True)
        path.unlink()
