"""Profiles: what a network costs on each target. The numbers are real; none of them is asserted."""

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, load_from_string

from engine import EngineError, merge_reports, read_report, read_spec, run
from engine.errors import BaselineFailedError, SpecInvalidError, TargetUnavailableError
from engine.report.markdown import markdown
from engine.report.run_facts import Memory
from engine.report.unmeasured import unmeasured

SIZE = {"metric": "size_bytes", "rule": "max", "value": 10}
ROOMY = {"metric": "size_bytes", "rule": "max", "value": 1e9}


def spec_of(*targets, **more):
    return read_spec({"kind": "profile", "targets": list(targets) or [{}], "measure_seconds": 0.1, **more})


def beside(folder: Path, baseline: bytes) -> Path:
    (folder / "baseline").mkdir()
    (folder / "baseline" / "model.onnx").write_bytes(baseline)
    return folder


@pytest.fixture
def quick() -> Callable[..., object]:
    """Run a job without the processes that measure memory: they are looked at once, below."""

    def make(spec, folder, tell=lambda _event: None, **more):
        probe = lambda _model, _target, _feed: Memory(peak_rss_bytes=1 << 20, load_ms=2.0, first_run_ms=1.0)  # noqa: E731
        return run(spec, folder, tell, probe=probe, **more)

    return make


def test_all_is_measured_beside_the_baseline(workspace, residual_cnn, images):
    labels = list(range(5)) * 8
    folder = workspace(residual_cnn(), image=images(40), label=labels)
    beside(folder, residual_cnn(opset=17))
    told = []
    gates = [
        ROOMY,
        {"metric": "top1", "rule": "max_drop", "value": 0.5},
        {"metric": "latency_p50", "rule": "max_ratio", "value": 1000, "level": "warn"},
    ]
    report = run(spec_of({"batch": 2}, gates=gates, tune={"max_seconds": 1, "max_threads": 2}), folder, told.append)
    assert read_report(json.loads((folder / "out" / "report.json").read_text())) == report
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        "report.json",
        "report.junit.xml",
        "report.md",
        "report.prom",
    ]
    (target,) = report.targets
    found = target.measured
    assert found.latency.p50_ms <= found.latency.p90_ms <= found.latency.p99_ms <= found.latency.max_ms
    assert found.comparison.compressed == found.latency
    assert [each.concurrency for each in found.throughput][:2] == [1, 2]
    assert all(each.samples_per_s == pytest.approx(2 * each.runs_per_s) for each in found.throughput)
    assert found.memory.warm_load_ms > 0
    assert found.baseline_memory.peak_rss_bytes > 1 << 20
    assert sum(cost.share for cost in found.by_type) == pytest.approx(1)
    assert found.by_type[0].op_type == "Conv"
    assert found.placement.nodes
    assert {node.provider for node in found.placement.nodes} == {"CPUExecutionProvider"}
    assert (found.placement.fallbacks, found.placement.fallback_share) == ((), 0)
    assert {each.metric: each.difference for each in found.quality}["top1"] == 0
    assert found.environment.distribution == "onnxruntime"
    levels = {trial.options.graph_optimization for trial in found.tuning.trials}
    assert levels == {"disabled", "basic", "extended", "all"}
    assert {trial.options.threads for trial in found.tuning.trials} >= {2}
    assert report.samples == 20
    assert (report.parts.calibrate, report.parts.judge, report.parts.select_is_judge) == (20, 20, True)
    said = "Runs take their inputs from the 20 samples that calibrate a job, quality is on the 20 that judge one."
    assert f"{said} {report.parts.reason}." in (folder / "out" / "report.md").read_text()
    assert [(each.gate.metric, each.target) for each in report.verdict.gates] == [
        ("size_bytes", 0),
        ("top1", 0),
        ("latency_p50", 0),
    ]
    assert report.verdict.outcome == "pass"
    text = (folder / "out" / "report.md").read_text()
    assert text == markdown(report)
    for word in ("cold load", "Session options", "CPUExecutionProvider", "top1", "Nodes by provider"):
        assert word in text
    kinds = [(event["type"], event.get("what")) for event in told]
    assert kinds[0][0] == "started"
    assert ("measuring", "session options") in kinds
    assert kinds[-2:] == [("step_finished", None), ("finished", None)]


def test_alone_a_network_has_its_tails_and_its_task_metric(workspace, residual_cnn, images, quick):
    folder = workspace(residual_cnn(), image=images(40), label=list(range(5)) * 8)
    gates = [
        {"metric": "latency_p99", "rule": "max", "value": 60_000, "confidence": 0.9},
        {"metric": "top1", "rule": "min", "value": 0.0},
    ]
    report = quick(spec_of(gates=gates), folder)
    found = report.targets[0].measured
    # Enough that the slowest run bounds the percentile, although the time was over long before.
    assert found.latency.samples + found.latency.dropped >= 230
    assert found.comparison is None
    assert report.baseline is None
    (quality,) = found.quality
    assert (quality.metric, quality.original, quality.difference) == ("top1", None, None)
    assert quality.interval.low <= quality.compressed <= quality.interval.high
    tail, accuracy = report.verdict.gates
    assert accuracy.outcome == "pass"
    # A noisy machine may not say, but half a minute is not exceeded.
    assert tail.outcome in {"pass", "inconclusive"}
    assert tail.measured == found.latency.p99_ms


def test_what_was_done_to_the_data_is_repeated(workspace, residual_cnn, images, quick):
    folder = workspace(residual_cnn(), image=images(24))
    with zipfile.ZipFile(folder / "data" / "data.npz", "a") as archive:
        archive.writestr("dataset.json", json.dumps({"kind": "images", "summary": "24 images, values / 255."}))
    report = quick(spec_of(), folder)
    assert report.preprocessing.kind == "images"
    assert "Data: 24 images, values / 255." in markdown(report)


def test_without_data_inputs_are_made_up_and_nothing_is_judged(workspace, residual_cnn, quick):
    report = quick(spec_of({}, {"threads": 2}, gates=[SIZE]), workspace(residual_cnn()))
    assert [each.measured.quality for each in report.targets] == [(), ()]
    assert (report.samples, report.parts) == (0, None)
    assert any("random inputs" in text for text in report.warnings)
    assert report.verdict.outcome == "fail"
    assert [each.target for each in report.verdict.gates] == [0, 1]


def test_a_gate_may_be_for_one_provider(workspace, residual_cnn, quick):
    folder = workspace(residual_cnn())
    report = quick(spec_of(gates=[{**SIZE, "provider": "cpu"}, ROOMY]), folder)
    assert [each.outcome for each in report.verdict.gates] == ["fail", "pass"]
    with pytest.raises(ValueError, match="for openvino, which is not among the targets"):
        spec_of(gates=[{**SIZE, "provider": "openvino"}])


def test_it_goes_on_after_the_last_target(workspace, residual_cnn, quick):
    folder, spec = workspace(residual_cnn()), spec_of({}, {"batch": 2})
    first = quick(spec, folder, only=frozenset({0}))
    told = []
    both = quick(spec, folder, told.append)
    assert both.targets[0] == first.targets[0]
    assert {event["step"] for event in told if "step" in event} == {1}


def test_parts_of_several_workers_make_one_report(workspace, residual_cnn, quick):
    spec = spec_of({}, {"batch": 2}, {"batch": 4}, gates=[ROOMY])
    second = quick(spec, workspace(residual_cnn(), name="second"), only=frozenset({1}))
    first = quick(spec, workspace(residual_cnn(), name="first"), only=frozenset({0}))
    problem = {"code": "no_worker", "class": "service", "message": "No worker was there.", "hint": "Start one."}
    third = unmeasured(spec.targets, spec.gates, [2], problem, first)
    report = merge_reports([second, third, first])
    assert [each.index for each in report.targets] == [0, 1, 2]
    assert [each.target for each in report.verdict.gates] == [0, 1, 2]
    assert [each.outcome for each in report.verdict.gates] == ["pass", "pass", "inconclusive"]
    assert report.verdict.outcome == "inconclusive"
    assert report.summary.count("a run takes") == 2
    assert "No worker was there" in markdown(report)


def test_the_data_are_parted_as_in_a_compression_and_an_older_worker_does_not_say_it(
    workspace, residual_cnn, images, quick, short_measurements
):
    arrays = {"image": images(600), "label": np.arange(600) % 5}
    job = read_spec({"recipe": {"passes": [{"type": "simplify"}]}})
    compressed = quick(job, workspace(residual_cnn(), name="job", **arrays))
    report = quick(spec_of({}, gates=[ROOMY]), workspace(residual_cnn(), name="profile", **arrays))
    assert (report.parts.calibrate, report.parts.select, report.parts.judge) == (200, 133, 267)
    assert report.parts == compressed.parts
    assert report.samples == compressed.held_out_samples
    older = report.model_copy(update={"parts": None})
    assert merge_reports([older, report]).parts == report.parts
    assert "samples that calibrate a job" not in markdown(older)
    body = {name: value for name, value in report.model_dump(mode="json").items() if name != "parts"}
    assert read_report(body).parts is None


def test_a_target_on_which_the_process_died_is_left_out(workspace, residual_cnn, quick):
    folder = workspace(residual_cnn())
    report = quick(spec_of({}, {"batch": 2}, gates=[ROOMY]), folder, crashed_steps=frozenset({1}))
    assert report.targets[1].measured is None
    assert report.targets[1].refusal.code == "crashed"
    assert [each.outcome for each in report.verdict.gates] == ["pass", "fail"]
    assert "does not run on cpu" in report.verdict.gates[1].reason


def test_a_target_that_is_not_there_fails_the_job(workspace, residual_cnn, quick):
    folder = workspace(residual_cnn())
    with pytest.raises(TargetUnavailableError, match="cuda") as caught:
        quick(spec_of({}, {"provider": "cuda"}), folder)
    assert caught.value.step == 1
    assert not (folder / "out").exists()


def test_a_network_that_runs_nowhere_fails_the_job(workspace, network, quick):
    net = network()
    broken = net.build(
        net.op("Reshape", "image", net.weight("shape", np.array([7, 7])), name="shape7"), out_shape=(7, 7)
    )
    folder = workspace(broken)
    with pytest.raises(EngineError, match="Reshape failed") as caught:
        quick(spec_of(), folder)
    assert caught.value.node == "shape7"
    fine = network()
    flat = fine.op("Flatten", fine.relu("image"))
    folder = beside(workspace(fine.build(flat, out_shape=("n", 432)), name="other"), broken)
    with pytest.raises(BaselineFailedError, match=r"baseline does not run on cpu: .*Reshape failed"):
        quick(spec_of(), folder)


def test_comparisons_need_a_baseline_that_takes_the_same_data(workspace, residual_cnn, quick):
    ratio = {"metric": "latency_p99", "rule": "max_ratio", "value": 1}
    with pytest.raises(SpecInvalidError, match=r"latency_p99 \(max_ratio\) compares with a baseline"):
        quick(spec_of(gates=[ratio]), workspace(residual_cnn()))
    with pytest.raises(SpecInvalidError, match=r"cosine .* compares with a baseline"):
        quick(
            spec_of(gates=[{"metric": "cosine", "rule": "min", "value": 0.9}]), workspace(residual_cnn(), name="second")
        )
    other = beside(workspace(residual_cnn(), name="third"), residual_cnn(shape=("n", 3, 16, 16)))
    with pytest.raises(SpecInvalidError, match=r"Input `image` is float32 .* they do not take the same data"):
        quick(spec_of(gates=[ratio]), other)


def test_a_baseline_of_another_batch_size_is_fed_as_it_wants(workspace, residual_cnn, quick):
    folder = beside(workspace(residual_cnn()), residual_cnn(shape=(4, 3, 12, 12), out_shape=(4, 5)))
    report = quick(spec_of({"batch": 4}), folder)
    assert report.targets[0].measured.comparison is not None


# A second real provider, in an environment of its own


@pytest.fixture(scope="module")
def openvino(openvino_python, tmp_path_factory):
    """Profile on openvino and cpu in one process, a network whose last operator openvino does not take."""
    folder = tmp_path_factory.mktemp("openvino")
    from tests.engine.conftest import residual

    model = load_from_string(residual())
    model.graph.node[-1].CopyFrom(helper.make_node("Hardmax", model.graph.node[-1].input, ["scores"], "last"))
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    (folder / "plain.onnx").write_bytes(residual())
    spec = {"kind": "profile", "targets": [{"provider": "openvino"}, {}], "measure_seconds": 0.2, "gates": [SIZE]}
    (folder / "spec.json").write_text(json.dumps({**spec, "tune": {"max_seconds": 1}}))
    command = [openvino_python, "-m", "engine", "run", "net.onnx", "spec.json", "--baseline", "plain.onnx"]
    done = subprocess.run([*command, "--out", "made"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr[-2000:]
    return read_report(json.loads((folder / "made" / "report.json").read_text())), done, folder


def test_openvino_runs_its_nodes_and_names_those_that_it_leaves(openvino):
    report, _, folder = openvino
    placement = report.targets[0].measured.placement
    assert placement.nodes_by_provider == {"OpenVINOExecutionProvider": 1, "CPUExecutionProvider": 1}
    assert [(node.node, node.op_type, node.provider) for node in placement.fallbacks] == [
        ("last", "Hardmax", "CPUExecutionProvider")
    ]
    assert 0 < placement.fallback_share < 1
    others = {node.provider for node in placement.nodes} - {"CPUExecutionProvider"}
    assert others == {"OpenVINOExecutionProvider"}
    assert any(text.startswith("1 of ") and "do not run on openvino" in text for text in report.warnings)
    assert "`last` (Hardmax) fell back to CPUExecutionProvider" in (folder / "made" / "report.md").read_text()


def test_the_runtime_of_each_target_is_told(openvino):
    report, _, _ = openvino
    where = [each.measured.environment for each in report.targets]
    assert [(each.provider, each.distribution) for each in where] == [
        ("openvino", "onnxruntime-openvino"),
        ("cpu", "onnxruntime-openvino"),
    ]
    assert report.targets[1].measured.placement.nodes_by_provider.keys() == {"CPUExecutionProvider"}


def test_only_options_that_reach_the_provider_are_tuned(openvino):
    report, _, _ = openvino
    tried = [trial.options for trial in report.targets[0].measured.tuning.trials]
    assert tried
    assert {options.execution_mode for options in tried} == {"sequential"}
    assert {options.spinning for options in tried} == {True}


def test_python_m_engine_profiles(openvino):
    _, done, _ = openvino
    assert "fail: size_bytes" in done.stdout
    assert "step 1: openvino" in done.stderr
    assert "measuring throughput" in done.stderr
