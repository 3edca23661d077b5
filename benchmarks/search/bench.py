"""A case of the benchmarks as a search has it open: its network, data and space, in a folder of its own."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import cases
from engine.goal import Goal, Precision, Space
from engine.job.frame import Frame
from engine.job.search_bench import SearchBench
from engine.measure import memory
from engine.runtime.host_lock import HostLock
from engine.spec import Search
from engine.target import Target


@contextmanager
def opened(case: cases.Case, precisions: Sequence[Precision]) -> Iterator[SearchBench]:
    """Open a case for its candidates, as a search job does, with a space of these precisions beside 32-bit floats."""
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        workspace = Path(folder)
        for name in ("model", "data"):
            (workspace / name).mkdir()
        shutil.copyfile(case.path, workspace / "model" / "model.onnx")
        cases.write_dataset(case.data(), workspace / "data" / "data.npz")
        spec = Search(
            kind="search",
            goal=Goal(),
            space=Space(precisions=tuple(dict.fromkeys(("float32", *precisions)))),
            target=Target(threads=1),
            outputs={},
        )
        frame = Frame(workspace, lambda _event: None, HostLock(None), memory.probe)
        with SearchBench.open(spec, frame) as bench:
            yield bench
