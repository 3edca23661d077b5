"""No sample is taken while a job beside it works, and nothing that a pass found out is lost with its process."""

import importlib
import shutil
import threading
import time

import numpy as np
import pytest

from engine import Compress, HostLock, run
from engine.calibrate.cache import digest_of
from engine.contract import Observe
from engine.job import workbench
from engine.measure import latency
from engine.measure.latency import compare
from engine.passes.float16 import Float16
from engine.report.run_facts import Memory
from engine.report.values import Change
from engine.target import Target

observe_module = importlib.import_module("engine.calibrate.observe")  # its package has a function of that name
PATIENCE_S = 120


pytestmark = pytest.mark.usefixtures("short_measurements")


def _compress(folder, **options):
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    spec = Compress.model_validate({"recipe": {"passes": [{"type": "float16"}]}})
    return run(spec, folder, lambda _event: None, probe=lambda *_: probe, **options)


def _busy(seconds):
    """Compute on one core; give when it began and ended."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        np.linalg.qr(np.ones((64, 64)))
    return began, time.perf_counter()


def test_no_sample_is_taken_while_a_pass_works(workspace, residual_cnn, images, tmp_path, monkeypatch):
    path, model = tmp_path / "quiet.lock", residual_cnn()
    folder = workspace(model, image=images(12))
    work, samples = [], []
    at_work, measured = threading.Event(), threading.Event()

    def heavy(_step, _network, _observations, context):
        """Pieces of three kinds: in a block of their own, up to telling progress, and all the rest of the pass."""
        work.append(_busy(0.1))
        at_work.set()
        while not measured.is_set():
            with context.working():
                work.append(_busy(0.1))
            work.append(_busy(0.1))
            context.progress(0.5, "half way")
        work.append(_busy(0.1))
        return Change(summary="Worked hard.", repair=True)

    genuine = latency._Record.take

    def take(record, runners, order, turn, column):
        began = time.perf_counter()
        genuine(record, runners, order, turn, column)
        if threading.current_thread().name == "measurement":
            samples.append((began, time.perf_counter()))

    def measure():
        assert at_work.wait(PATIENCE_S)
        feed = {"image": images(1).astype(np.float32)}
        for _ in range(3):
            compare(model, model, feed, Target(), lock=HostLock(path), seconds=60, least_runs=10, max_runs=20)
        measured.set()

    monkeypatch.setattr(Float16, "apply", heavy)
    monkeypatch.setattr(latency._Record, "take", take)
    measuring = threading.Thread(target=measure, name="measurement")
    measuring.start()
    try:
        _compress(folder, lock_file=path)
    finally:
        measured.set()
        measuring.join(PATIENCE_S)
    # They were at it at the same time ...
    assert len(samples) >= 30
    assert work[0][1] < samples[0][0] < samples[-1][1] < work[-1][1]
    # ... and never at once.
    began, ended = (np.array(side) for side in zip(*work, strict=True))
    for start, end in samples:
        assert not ((began < end) & (start < ended)).any()


def test_a_second_attempt_finds_what_the_first_one_observed(workspace, residual_cnn, images, tmp_path, monkeypatch):
    runs, digests = [], []

    def observing(_step, network, _observations, context):
        for tensor in ("stem_out", "scores"):
            context.observe(network, [Observe(tensor)])
        if not (context.checkpoint / "died").exists():
            (context.checkpoint / "died").write_text("once")
            raise KeyboardInterrupt
        return Change(summary="Looked.", repair=True)

    genuine = observe_module._Runner.run
    monkeypatch.setattr(observe_module._Runner, "run", lambda *a, **k: runs.append(1) or genuine(*a, **k))
    monkeypatch.setattr(workbench, "digest_of", lambda samples: digests.append(1) or digest_of(samples))
    monkeypatch.setattr(Float16, "apply", observing)
    arrays = {"image": images(24)}
    first = workspace(residual_cnn(), name="first", **arrays)
    with pytest.raises(KeyboardInterrupt):
        _compress(first)
    # What the pass itself asks for, and twice here.
    assert (len(runs), len(digests)) == (3, 1)
    # The next attempt has a folder of its own; of the first one's, `steps` alone is left.
    second = workspace(residual_cnn(), name="second", **arrays)
    shutil.copytree(first / "steps", second / "steps")
    shutil.rmtree(first)
    report = _compress(second)
    assert report.steps[0].status == "applied"
    assert len(runs) == 3, "statistics were recorded again"
    assert len(digests) == 2
    assert not (second / "steps" / "00.checkpoint").exists()
