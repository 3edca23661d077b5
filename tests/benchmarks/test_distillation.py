"""The tasks of the distillation benchmark are well-formed, and its frame makes, judges, races and holds networks to their bars."""

import os
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime
import pytest
from pydantic import TypeAdapter

import engine
from benchmarks import bars, cases, contest
from benchmarks.cases import Case, Data, NetworkMissingError, write_dataset
from benchmarks.contest import Contest, Effort, Result, recipe
from benchmarks.distillation import __main__ as command
from benchmarks.distillation import entries, samples, student
from benchmarks.distillation.training import lines
from benchmarks.peers import environments
from benchmarks.process import spend
from benchmarks.quantization import entries as quantization
from engine.passes import AnyPass
from tests.engine.conftest import residual

KNOWN = {description["type"] for description in engine.list_passes()}
STEPS = {
    (task.name, setting): [step for step in passes if step["type"] in KNOWN]
    for task in entries.TASKS
    for setting, passes in task.recipes.items()
}


@pytest.mark.parametrize("task", entries.TASKS, ids=lambda task: task.name)
def test_tasks_speak_of_networks_passes_and_settings_that_there_are(task):
    assert cases.named([task.case])
    assert {bar.setting for bar in task.bars} <= set(task.recipes)
    assert set(task.integers) <= {*quantization.RECIPES, "fused, dynamic"}
    assert task.contested().title.endswith(task.title)
    types = {step["type"] for passes in task.recipes.values() for step in passes}
    assert types <= KNOWN | entries.TRAINING
    for setting, passes in task.recipes.items():
        timed = entries.timed(passes, 60.0)
        assert sum(step.get("seconds", 0) for step in timed) in {0, 60.0}, setting


@pytest.mark.parametrize("steps", STEPS.values(), ids=["-".join(key) for key in STEPS])
def test_recipes_are_what_the_engine_takes(steps):
    for step in steps:
        TypeAdapter(AnyPass).validate_python(step)


def test_names_of_tasks_and_entries_are_their_own():
    assert len({task.name for task in entries.TASKS}) == len(entries.TASKS)
    for task in entries.TASKS:
        names = [entry.name for entry in [*entries.ours(task, 10), *entries.peers(task, 10)]]
        assert len(set(names)) == len(names)


def test_what_bars_are_about_goes_first_and_the_longest_of_it(monkeypatch):
    known = [{"type": name} for name in KNOWN | entries.TRAINING]
    monkeypatch.setattr(engine, "list_passes", lambda: known)
    task = next(task for task in entries.TASKS if task.name == "residual_cnn")

    def ordered(task, *, bounded):
        rank = partial(command._rank, task, bounded=bounded)
        both = [*entries.peers(task, 90.0), *entries.ours(task, 90.0)]
        return [entry.setting for entry in sorted(both, key=rank)]

    order = ordered(task, bounded=True)
    assert order[:3] == [entries._MIXED, entries._BYTES, f"{bars.INTEGERS_ONLY}: mixed"]
    # Every network of integers is compared with; the rest is only shown.
    assert order[-1] == f"{entries._BEST}, quantized, trained again"
    first = entries.TASKS[0]
    assert ordered(first, bounded=True)[:3] == [entries._BEST, f"{bars.INTEGERS_ONLY}: static", "pruned, reconstructed"]
    assert ordered(first, bounded=False)[-2:] == ["pruned, reconstructed", f"{bars.INTEGERS_ONLY}: static"]


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 3, 12, 12), dtype=np.float32)


def load(own, folder):
    del folder
    return Data({"image": images(own)}, {"image": images(30, 1)})


@pytest.fixture
def case(tmp_path):
    (tmp_path / "model.onnx").write_bytes(residual())
    return Case("tiny", "Tiny", partial(load, 20), cases._classes, cases._by_agreement, 0.5, "nothing")


def test_samples_to_train_on_follow_those_that_calibrate(case, tmp_path):
    with pytest.raises(NetworkMissingError, match=r"unlabelled\.npz to train on yet: python .* tiny"):
        samples.more(case, 50)(tmp_path)
    more = images(40, 2)
    np.savez(tmp_path / "unlabelled.npz", image=more)
    data = samples.more(case, 50, select=10)(tmp_path)
    assert np.array_equal(data.calibration["image"], np.concatenate([images(20), more])[:40])
    assert np.array_equal(data.select["image"], more[20:30])
    assert np.array_equal(data.test["image"], images(30, 1))
    with pytest.raises(NetworkMissingError, match=r"60 samples to train on, 100 are wanted: .* --count 80"):
        samples.more(case, 100)(tmp_path)


def test_samples_to_choose_by_need_no_labels(tmp_path):
    data = Data({"x": np.arange(6.0)}, {"x": np.arange(100.0, 104)}, select={"x": np.arange(50.0, 53)})
    write_dataset(data, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as stored:
        assert set(stored.files) == {"x", "part"}
        parts = [stored["x"][stored["part"] == part].tolist() for part in (cases.CALIBRATE, cases.SELECT)]
    assert parts == [data.calibration["x"].tolist(), data.select["x"].tolist()]


def test_the_student_is_drawn_by_its_seed_and_sees_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 28, 28)).astype(np.float32)
    answers = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        path = student.write(tmp_path / name / "model.onnx", seed)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers.append(session.run(["logits"], {"image": pixels})[0])
    one, same, other = answers
    assert one.shape == (64, 10)
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)
    # Neither dead nor saturated: something can be learnt from.
    assert 1e-2 < one.std() < 10


def test_lanes_have_cores_of_their_own():
    cores = sorted(os.sched_getaffinity(0))
    assert command.lanes(1) == [cores[:2]]
    with pytest.raises(SystemExit, match=rf"^{len(cores)} cores are enough for {len(cores) // 2} lanes of 2"):
        command.lanes(len(cores))


def test_a_script_runs_on_the_cores_that_it_is_given(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\ndef work(request):\n    return {'cores': sorted(os.sched_getaffinity(0))}\n")
    core = max(os.sched_getaffinity(0))
    spent = spend(sys.executable, script, {}, tmp_path, cores=[core])
    assert spent.problem is None
    assert spent.value == {"cores": [core]}


def test_folders_beside_a_script_hide_no_module_of_python(tmp_path):
    (tmp_path / "http").mkdir()
    (tmp_path / "http" / "__init__.py").touch()
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    script = tmp_path / "script.py"
    script.write_text("import http.client\nfrom beside import VALUE\ndef work(request):\n    return {'value': VALUE}\n")
    spent = spend(sys.executable, script, {}, tmp_path)
    assert spent.problem is None
    assert spent.value == {"value": 7}


@pytest.fixture
def opened(case, tmp_path, monkeypatch):
    """A contest on a tiny network, without anything that trains."""
    monkeypatch.setattr(contest, "SCRATCH", tmp_path / "work")
    monkeypatch.setattr(cases, "NETWORKS", tmp_path.parent)
    case = replace(case, folder=tmp_path.name)
    size = ({"metric": "size_bytes", "rule": "max_ratio", "value": 1.0},)
    pruned = recipe("pruned", {"type": "prune_channels", "sparsity": 0.5, "importance": "magnitude"}, gates=size)
    task = replace(entries.TASKS[0], bars=(bars.Bar("pruned", "smaller than fp32", bars.smaller, 1.2, 100.0),))
    return command._Open(task, Contest.open(case, Effort(), "tiny", keep=False), [pruned])


def test_networks_are_made_at_one_time_and_raced_at_another(opened):
    ((made,),) = command.make([opened], command.lanes(1))
    assert made.problem is None
    assert made.score["value"] <= 1
    # A later run finds what was made, and makes nothing again.
    again = Contest.open(opened.contest.case, Effort(), "tiny", keep=True)
    assert again.make(opened.entries[0], timeout=0.0) == made
    original, raced = again.race([made], Effort(seconds=0.2, min_runs=5))
    assert original.score["value"] == 1
    assert raced.latency["ratios"]["p50"]["value"] > 0
    (held,) = bars.hold(opened.task.bars, [original, raced])
    assert held.met
    assert held.figure == pytest.approx(original.bytes / raced.bytes)
    assert held.line.startswith("met: pruned, smaller than fp32:")


def test_what_would_end_too_late_is_not_begun(opened):
    ((late,),) = command.make([opened], command.lanes(1), deadline=0.0)
    assert late.problem == "left out, time was over"
    (held,) = bars.hold(opened.task.bars, [Result("fp32", "original", path="-"), late])
    assert not held.met
    assert "**missed**" in held.line


def scored(setting, change, *, maker=contest.OURS, ratio=1.0, **more):
    latency = {"stable": True, "ratios": {"p50": {"value": ratio}}}
    return Result(maker, setting, path="-", score={"value": 0.9 + change, "change": change}, latency=latency, **more)


def test_bars_are_held_by_loss_speed_and_share_of_the_original():
    original = Result("fp32", "original", path="-", bytes=1000, score={"value": 0.9, "change": 0.0})
    integers = [
        scored(f"{bars.INTEGERS_ONLY}: static", -0.001, ratio=0.8),
        scored(f"{bars.INTEGERS_ONLY}: static u8s8", -0.1, ratio=0.5, maker="onnxruntime"),
    ]
    results = [original, *integers, scored("small", -0.008, ratio=0.25)]
    limits = (
        bars.Bar("small", "loss", bars.loss, 0.008, 0.004, unit="points", most=True),
        bars.Bar("small", "loss", bars.loss, 0.007, unit="points", most=True),
        bars.Bar("small", "speed", bars.faster, 4.0, 4.0),
        bars.Bar("small", "speed beside integers", bars.faster_than_integers, 2.5),
        bars.Bar("small", "share", bars.of_original, 0.99, unit="%"),
        bars.Bar("absent", "loss", bars.loss, 1.0, most=True),
    )
    held = list(bars.hold(limits, results))
    assert [one.met for one in held] == [True, False, True, False, True, False]
    assert held[0].line == "met: small, loss: 0.80 points (at most 0.80 points, aim 0.40 points)"
    assert held[2].line.startswith("met, and the aim: small, speed: 4.00x")
    # The fastest of anybody counts, ours or not: 2x of fp32 is what 4x is held against.
    assert held[3].figure == pytest.approx(2.0)


def test_what_training_took_is_told():
    step = {"type": "distill", "status": "applied", "seconds": 12.3, "change": "KL 0.5 to 0.1."}
    ours = scored("small", 0.0, peak_rss_bytes=500_000_000, told={"steps": [step, {"type": "simplify"}]})
    peer = scored("distilled", 0.0, maker="torch", told={"trained_steps": 70, "trained_seconds": 20.0})
    assert lines([ours, peer, scored("static", 0.0)]) == [
        "onnxpress small: `distill` took 12.3 s: KL 0.5 to 0.1; peak memory of its process 500 MB.",
        "torch distilled: fine-tuned for 20.0 s, 70 steps.",
    ]


def test_peers_may_run_where_the_benchmark_runs(monkeypatch):
    monkeypatch.setenv(environments.PLACE, "here")
    assert str(environments.interpreter("onnxruntime")) == sys.executable
    assert environments.version("onnxruntime") == onnxruntime.__version__
    monkeypatch.setattr(environments, "_package", lambda name: f"{name}-that-nobody-has")
    with pytest.raises(environments.PeerMissingError, match="is not installed here"):
        environments.interpreter("nncf")
    assert environments.version("nncf") == "(not installed)"
