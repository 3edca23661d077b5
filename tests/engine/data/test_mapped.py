"""What was read of a mapped file leaves the process's memory, and is the same when it is read again."""

import sys
from pathlib import Path

import numpy as np
import pytest

from engine.data.mapped import let_go

SIZE = 32 << 20


def mapped_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile")


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages in /proc")
@pytest.mark.parametrize("mode", ["r", "w+"])
def test_pages_go_and_come_back(tmp_path, mode):
    path = tmp_path / "array"
    np.arange(SIZE // 4, dtype=np.int32).tofile(path)
    array = np.memmap(path, np.int32, mode, 0, (SIZE // 64, 16))
    if mode == "w+":
        array[:] = np.arange(SIZE // 4, dtype=np.int32).reshape(array.shape)
    expected = int(array.astype(np.int64).sum())
    before = mapped_bytes()
    let_go(array[1:])
    assert mapped_bytes() < before - SIZE // 2
    assert int(array.astype(np.int64).sum()) == expected


def test_arrays_that_are_held_are_left_alone():
    array = np.ones(SIZE // 4, np.float32)
    let_go(array[2:])
    assert array.all()
