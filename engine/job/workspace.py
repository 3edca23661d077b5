"""A job's folder: its dataset as it lies there, and files that are whole or not there."""

import json
import os
from pathlib import Path

from engine.data.containers import find
from engine.data.dataset import Dataset, inspect_dataset
from engine.errors import DatasetInvalidError
from engine.inspection import DatasetInspection


def open_dataset(folder: Path, scratch: Path) -> tuple[Dataset | None, DatasetInspection | None]:
    """Give the job's dataset and what it is, None and None where there is none; raises DatasetInvalidError."""
    path = find(folder)
    if path is None:
        return None, None
    declared = folder / "dataset.json"
    metric = json.loads(declared.read_bytes()).get("metric") if declared.exists() else None
    inspection = inspect_dataset(path, metric=metric)
    if inspection.samples < 2:
        raise DatasetInvalidError("At least two samples are needed: one to calibrate and more to judge.")
    return Dataset.open(path, scratch), inspection


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash of the machine."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
