"""Whole jobs: what comes out, going on after a crash, rolling back harm, and keeping the original where nothing helps."""

import hashlib
import json

import numpy as np
import onnx
import pytest

from engine import Compress, Report, run
from engine.errors import BaselineFailedError, DatasetInvalidError, SpecInvalidError
from engine.job import compress as compress_module
from engine.job import timing, workbench
from engine.report.markdown import markdown
from engine.report.run_facts import Memory, SessionOptions
from engine.report.values import Refusal, Tuning
from engine.runtime import sessions
from engine.target import Target

# What static quantization tries besides is its own tests' matter.
STATIC = {"type": "quantize_static", "measure_layers": False, "improve": False}
BOTH = [{"type": "simplify"}, STATIC]
SIZE = [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.5}]


pytestmark = pytest.mark.usefixtures("short_measurements")


def _probe(_model, _target, _feed):
    return Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)


@pytest.fixture
def compress():
    def make(folder, passes=BOTH, *, gates=SIZE, events=None, crashed=frozenset(), **target):
        spec = Compress.model_validate({"recipe": {"passes": passes}, "gates": gates, "target": target})
        told = [] if events is None else events
        return run(spec, folder, told.append, crashed_steps=crashed, probe=_probe)

    return make


@pytest.fixture
def job(workspace, residual_cnn, images):
    """A workspace whose labels are the network's own decisions, some samples unlabelled."""

    def make(name="job", count=60, **options):
        serialized = residual_cnn(**options)
        image = images(count)
        opened = sessions.session(serialized, Target())
        scores = np.concatenate(
            [opened.run({"image": each[None].astype(np.float32)})["scores"] for each in image]
        ) if not options else np.zeros((count, 5))  # fmt: skip
        label = scores.argmax(axis=1).astype(np.int64)
        label[:20] = -1
        return workspace(serialized, name=name, image=image, label=label)

    return make


def _says_what_it_is(folder, report):
    """The file alone tells where it comes from, how it was made and what was measured of it."""
    source = hashlib.sha256((folder / "model" / "model.onnx").read_bytes()).hexdigest()
    said = {entry.key: entry.value for entry in onnx.load(folder / "out" / "model.onnx").metadata_props}
    assert said["onnxpress.source"] == f"sha256:{source}" == f"sha256:{report.original.sha256}"
    assert [step["type"] for step in json.loads(said["onnxpress.recipe"])] == ["simplify", "quantize_static"]
    assert json.loads(said["onnxpress.versions"])["onnxruntime"] == report.environment.onnxruntime
    figure = json.loads(said["onnxpress.quality"])[0]
    assert (figure["metric"], figure["samples"]) == ("top1", 40)
    assert figure["result"] == pytest.approx(report.quality[0].compressed, abs=1e-6)


def _is_loaded_as_told(folder, loading, monkeypatch):
    """The lines of the report make a session that runs, and the report says what goes in and comes out."""
    assert (loading.provider, loading.tuned) == ("CPUExecutionProvider", False)
    assert loading.onnxruntime is not None
    made = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(loading.usage, made)
    session = made["session"]
    assert session.get_session_options().intra_op_num_threads == loading.options.threads
    assert [each.name for each in session.get_inputs()] == [each.name for each in loading.inputs] == ["image"]
    assert [each.name for each in session.get_outputs()] == [each.name for each in loading.outputs]
    assert "onnxpress.source" in session.get_modelmeta().custom_metadata_map


def test_a_job_gives_a_verified_smaller_network_and_its_report(job, compress, monkeypatch):
    folder, events = job(), []
    report = compress(folder, [BOTH[0], {**STATIC, "improve": True}], events=events)
    assert [step.status for step in report.steps] == ["applied", "applied"]
    assert report.size.compressed < 0.4 * report.size.original
    assert not report.unchanged
    assert (report.calibration_samples, report.held_out_samples) == (20, 40)
    assert report.quality[0].metric == "top1"
    assert report.quality[0].original == 1.0
    assert report.quality[0].compressed >= 0.85
    assert report.verdict.outcome == "pass"
    assert report.latency is not None
    assert report.memory is not None
    assert Report.model_validate_json((folder / "out" / "report.json").read_bytes()) == report
    assert report.bytes.total == (folder / "out" / "model.onnx").stat().st_size
    assert sum(row.bytes for row in report.bytes.rows) == report.bytes.total
    text = (folder / "out" / "report.md").read_text()
    assert "# Compression report: pass" in text
    assert f"| all |  | {report.bytes.total:,} |  |" in text
    assert "| size |" in text
    told = f"<summary>How to load it</summary>\n\nIt takes ONNX Runtime {report.loading.onnxruntime} or newer"
    assert told in text
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        "model.onnx",
        "report.json",
        "report.junit.xml",
        "report.md",
        "report.prom",
    ]
    onnx.checker.check_model(str(folder / "out" / "model.onnx"), full_check=True)
    _says_what_it_is(folder, report)
    _is_loaded_as_told(folder / "out", report.loading, monkeypatch)
    assert report.compressed.size_bytes == (folder / "out" / "model.onnx").stat().st_size
    kinds = [event["type"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.count("step_started") == kinds.count("step_finished") == 2
    assert all(0 <= event["fraction"] <= 1 for event in events if event["type"] == "progress")
    json.dumps(events)


def test_each_network_is_measured_with_its_best_options(job, monkeypatch):
    """Here the search is told what is best; tests of the search itself show how it finds out."""
    seen = []

    def find(network, _feeds, target, **_limits):
        best = SessionOptions(threads=2) if network.parent.name == "model" else None
        return Tuning(default=SessionOptions(threads=target.threads), trials=(), chosen=best, gain=None, reason="so")

    original = timing.compare

    def decide(*_what, **_more):
        return Refusal(code="no_gain", reason="it does not pay") if len(seen) == 1 else None

    def compare(*networks, options, **more):
        seen.append(tuple(each and each.threads for each in options))
        return original(*networks, options=options, **more)

    monkeypatch.setattr(timing, "find_options", find)
    monkeypatch.setattr(timing, "compare", compare)
    # However busy this machine is.
    monkeypatch.setattr(timing, "in_doubt", lambda _latency: False)
    body = {"recipe": {"passes": [STATIC]}, "gates": SIZE, "tune": {}}
    plain = run(Compress.model_validate(body), job("plain"), lambda _: None, probe=_probe)
    # The step pays without; then the stored result beside the original.
    assert seen == [(None, None), (2, None)]
    assert not plain.unchanged
    seen.clear()
    monkeypatch.setattr(compress_module, "decide", decide)
    report = run(Compress.model_validate(body), job(), lambda _: None, probe=_probe)
    # A step that does not pay with the target's own options may with others.
    assert seen == [(None, None), (2, None), (2, None)]
    assert not report.unchanged
    assert (report.tuning.original.chosen.threads, report.tuning.compressed.chosen) == (2, None)
    assert "session options that it runs best with" in markdown(report)


def test_goes_on_after_the_last_finished_step(job, compress, monkeypatch):
    folder = job()
    compress(folder, BOTH)
    first = (folder / "out" / "model.onnx").read_bytes()
    checkpoint = (folder / "steps" / "00.onnx").stat().st_mtime_ns
    (folder / "steps" / "01.json").unlink()
    (folder / "steps" / "01.onnx").unlink()
    (folder / "steps" / "01.candidate.onnx").write_bytes(b"half written")
    events = []
    compress(folder, BOTH, events=events)
    assert [event["step"] for event in events if event["type"] == "step_started"] == [1]
    assert (folder / "steps" / "00.onnx").stat().st_mtime_ns == checkpoint
    assert (folder / "out" / "model.onnx").read_bytes() == first


def test_a_step_that_crashed_is_left_out_and_the_rest_done(job, compress):
    report = compress(job(), crashed=frozenset({0}))
    assert report.steps[0].refusal.code == "crashed"
    assert report.steps[1].status == "applied"


def test_keeps_the_original_bytes_where_nothing_helps(job, compress):
    folder = job()
    impossible = [{"metric": "sqnr_db", "rule": "min", "value": 500}]
    report = compress(folder, [STATIC], gates=impossible)
    assert report.unchanged
    assert report.steps[0].refusal.code == "too_lossy"
    assert report.steps[0].change is not None
    assert (folder / "out" / "model.onnx").read_bytes() == (folder / "model" / "model.onnx").read_bytes()
    assert report.size.compressed == report.size.original
    assert report.memory.compressed == report.memory.original
    assert report.summary.startswith("No step was kept")
    assert report.verdict.outcome == "fail"
    assert not list((folder / "steps").glob("*.onnx"))


@pytest.fixture
def straight(network):
    """A network of which `simplify` can take away one operator of 31, the Identity at its end."""
    net = network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    for at in range(12):
        x = net.relu(net.conv(x, 16, 16, name=f"layer{at}"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"))
    return net.build(net.op("Gemm", flat, net.normal("head.w", 16, 5), net.normal("head.b", 5), name="head"))


def test_what_costs_nothing_and_gains_nothing_is_kept_only_for_steps_after_it(workspace, straight, images, compress):
    simplify, impossible = {"type": "simplify"}, {"metric": "sqnr_db", "rule": "min", "value": 150}
    alone = workspace(straight, name="alone", image=images(20))
    events = []
    report = compress(alone, [simplify], gates=[], events=events)
    assert report.unchanged
    # Of so small a network a busy machine may even say that it became slower.
    assert report.steps[0].refusal.code == "no_gain"
    assert "steps after it" not in report.steps[0].refusal.reason
    assert (alone / "out" / "model.onnx").read_bytes() == straight
    assert [event["status"] for event in events if event["type"] == "step_finished"][-1] == "refused"
    # What an earlier attempt found out stands.
    again = compress(alone, [simplify], gates=[])
    assert again.steps == report.steps
    assert again.unchanged
    report = compress(
        workspace(straight, name="refused", image=images(20)),
        [simplify, STATIC],
        gates=[impossible],
    )
    assert report.unchanged
    assert report.steps[0].refusal.reason.endswith("It had been kept for the steps after it, none of which was kept.")
    in_float = {row.reason for row in report.bytes.rows if row.kind == "float_weights"}
    assert in_float == {"weights of Conv: quantize_static was refused"}
    report = compress(workspace(straight, name="built", image=images(20)), BOTH)
    assert [step.status for step in report.steps] == ["applied", "applied"]


def test_a_step_that_breaks_its_promise_is_rolled_back(job, compress, monkeypatch):
    from engine.graph import simplify

    def corrupt(model):
        for value in model.graph.initializers.values():
            if value.name == "head.w":
                import onnx_ir as ir

                value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)

    whole = simplify.io.strip
    monkeypatch.setattr(simplify.io, "strip", lambda model: (corrupt(model), whole(model)))
    report = compress(job(), [{"type": "simplify"}])
    assert report.steps[0].refusal.code == "verification_failed"
    assert "lossless" in report.steps[0].refusal.reason
    assert report.unchanged


def test_without_data_lossless_steps_run_and_others_are_refused_at_once(workspace, residual_cnn, compress):
    report = compress(workspace(residual_cnn()), [{"type": "simplify"}])
    assert report.steps[0].status == "applied"
    assert (report.calibration_samples, report.held_out_samples) == (0, 0)
    with pytest.raises(SpecInvalidError, match="calibration data") as caught:
        compress(workspace(residual_cnn(), name="other"), BOTH)
    assert caught.value.step == 1


def test_unlabelled_data_are_judged_by_fidelity(workspace, residual_cnn, images, compress):
    report = compress(workspace(residual_cnn(), image=images(40)))
    assert {each.metric for each in report.quality} >= {"sqnr_db", "cosine"}
    assert all(each.original is None for each in report.quality)
    assert (report.calibration_samples, report.held_out_samples) == (20, 20)


def test_a_network_with_a_fixed_batch_size(workspace, residual_cnn, images, compress):
    folder = workspace(residual_cnn(shape=(4, 3, 12, 12), out_shape=(4, 5)), image=images(30))
    report = compress(folder)
    assert [step.status for step in report.steps] == ["applied", "applied"]
    assert any("fixed batch" in text for text in report.warnings)


def test_a_network_that_does_not_run_is_its_owners_problem(workspace, network, images, compress):
    net = network()
    x = net.op("Reshape", "image", net.weight("shape", np.array([1, 7], np.int64)))
    folder = workspace(net.build(x, shape=("n", 3, "h", "w"), out_shape=(1, 7)), image=images(4))
    with pytest.raises(BaselineFailedError, match="original network does not run"):
        compress(folder, [{"type": "simplify"}])
    assert not (folder / "out").exists()


def test_data_that_do_not_fit_end_the_job_at_once(workspace, residual_cnn, compress):
    with pytest.raises(DatasetInvalidError, match="missing: image"):
        compress(workspace(residual_cnn(), picture=np.zeros((4, 3, 12, 12), np.uint8)))


def test_a_refused_pass_says_why(job, compress, monkeypatch):
    from engine.passes.quantize_static import QuantizeStatic

    refusal = Refusal(code="unsupported", reason="Not this one.", node="stem")
    monkeypatch.setattr(QuantizeStatic, "check", lambda self, model: refusal)
    report = compress(job())
    assert report.steps[1].refusal == refusal
    assert "Not this one." in report.summary


def test_the_same_job_gives_the_same_bytes(job, compress):
    made = []
    for name in ("one", "two"):
        folder = job(name)
        compress(folder)
        made.append((folder / "out" / "model.onnx").read_bytes())
    assert made[0] == made[1]


def _recurrent():
    """Voice activity in small: frames [n, t], a state [2, n, 8] and a sampling rate without an axis."""
    random = np.random.default_rng(0)
    weights = {
        "proj": random.standard_normal((64, 64)) / 8, "w": random.standard_normal((1, 32, 64)) / 8,
        "r": random.standard_normal((1, 32, 8)) / 3, "out": random.standard_normal((8, 1)),
    }  # fmt: skip
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("MatMul", ["x", "proj"], ["p"], "project"),
        helper.make_node("Cast", ["rate"], ["rate_f"], "cast", to=kinds.FLOAT),
        helper.make_node("Div", ["rate_f", "full"], ["gain"], "gain"),
        helper.make_node("Mul", ["p", "gain"], ["scaled"], "scale"),
        helper.make_node("Unsqueeze", ["scaled", "zero"], ["steps"], "steps"),
        helper.make_node("Split", ["state"], ["h", "c"], "split", axis=0, num_outputs=2),
        helper.make_node("LSTM", ["steps", "w", "r", "", "", "h", "c"], ["", "h1", "c1"], "lstm", hidden_size=8),
        helper.make_node("Concat", ["h1", "c1"], ["next"], "next", axis=0),
        helper.make_node("Squeeze", ["h1", "zero"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "out"], ["logit"], "decide"),
        helper.make_node("Sigmoid", ["logit"], ["voice"], "voice"),
    ]
    tensors = [onnx.numpy_helper.from_array(np.float32(array), name) for name, array in weights.items()]
    tensors += [onnx.numpy_helper.from_array(np.array([0], np.int64), "zero")]
    tensors += [onnx.numpy_helper.from_array(np.array(16000, np.float32), "full")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "voice",
        [info("x", kinds.FLOAT, ["n", 64]), info("state", kinds.FLOAT, [2, "n", 8]), info("rate", kinds.INT64, [])],
        [info("voice", kinds.FLOAT, ["n", 1]), info("next", kinds.FLOAT, [2, "n", 8])],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


@pytest.mark.parametrize(
    "step", ["quantize_dynamic", "quantize_weights", "quantize_static", "mixed_precision", "float16"]
)
def test_a_recurrent_network_is_fed_one_whole_sample_at_a_time(step, workspace, compress, monkeypatch):
    # Races are run, but so small a network may be no faster on a busy machine.
    monkeypatch.setattr(workbench, "by_one_clock", lambda compared: [0.5 for _ in compared])
    random = np.random.default_rng(1)
    arrays = {
        "x": random.standard_normal((40, 64)).astype(np.float32),
        "state": random.standard_normal((40, 2, 1, 8)).astype(np.float32),
        "rate": np.full(40, 16000),
    }
    options = {"quantize_static": STATIC, "quantize_weights": {"bits": 8}}.get(step, {})
    size = [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.9}]
    report = compress(workspace(_recurrent(), **arrays), [{**options, "type": step}], gates=size)
    assert any("one at a time" in text and "state, rate" in text for text in report.warnings)
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert (report.calibration_samples, report.held_out_samples) == (20, 20)
    assert next(each.samples for each in report.quality if each.metric == "cosine") == 20


def test_a_recurrent_network_without_data_gets_made_up_states(workspace, compress):
    report = compress(workspace(_recurrent()), [{"type": "quantize_weights"}])
    assert report.steps[0].status == "applied", report.steps[0].refusal


def test_a_network_without_a_batch_axis_gets_whole_inputs(workspace, network, images, compress):
    net = network()
    x = net.op("Unsqueeze", "image", net.weight("zero", np.array([0], np.int64)))
    x = net.relu(net.conv(x, 3, 16, name="first"))
    x = net.op("GlobalAveragePool", net.relu(net.conv(x, 16, 16, name="second")))
    x = net.op("Gemm", net.op("Flatten", x), net.normal("head.w", 16, 5), name="head")
    scores = net.op("Reshape", x, net.weight("five", np.array([5], np.int64)))
    folder = workspace(net.build(scores, shape=(3, 12, 12), out_shape=(5,)), image=images(30))
    report = compress(folder, BOTH[1:])
    assert report.steps[0].status == "applied", report.steps[0].refusal
    assert next(each.compressed for each in report.quality if each.metric == "sqnr_db") > 20


def test_an_old_operator_set_is_converted(workspace, residual_cnn, images, compress):
    folder = workspace(residual_cnn(opset=11), image=images(30))
    # What becomes of it does not matter here: four bits are too few for so small a network.
    report = compress(folder, [{"type": "quantize_weights", "format": "qdq"}])
    assert "bits per weight" in report.steps[0].change.summary
    assert {layer.bits for layer in report.steps[0].change.details.layers} == {4}


def test_a_conversion_that_moves_the_outputs_is_refused(workspace, residual_cnn, images, compress, monkeypatch):
    genuine = onnx.version_converter.convert_version

    def broken(model, version):
        converted = genuine(model, version)
        bias = next(tensor for tensor in converted.graph.initializer if tensor.name == "head.b")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "head.b"))
        return converted

    monkeypatch.setattr(onnx.version_converter, "convert_version", broken)
    report = compress(workspace(residual_cnn(opset=11), image=images(30)), BOTH[1:])
    assert report.steps[0].refusal.code == "verification_failed"
    assert "operator set 13, the network uses 11, and converting it moves" in report.steps[0].refusal.reason


def _stack(folder, width=1536, layers=4):
    """A network of MatMuls with its weights beside it: more, twice, than a job of 256 MiB may hold."""
    random = np.random.default_rng(3)
    names = ["x", *(f"h{at}" for at in range(layers - 1)), "y"]
    nodes = [onnx.helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]], f"m{at}") for at in range(layers)]
    weights = [
        onnx.numpy_helper.from_array((random.normal(size=(width, width)) / width**0.5).astype(np.float32), f"w{at}")
        for at in range(layers)
    ]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "stack", ports[:1], ports[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model").mkdir()
    onnx.save(model, folder / "model" / "model.onnx", save_as_external_data=True, location="weights.bin")
    (folder / "data").mkdir()
    np.savez(folder / "data" / "data.npz", x=random.normal(size=(30, width)).astype(np.float32))
    return folder


@pytest.mark.parametrize("step", [{"type": "quantize_weights", "bits": 8}, {"type": "quantize_dynamic"}])
def test_a_network_that_does_not_fit_into_memory_is_verified_in_pieces(step, tmp_path, monkeypatch):
    spec = {
        "recipe": {"passes": [{"type": "simplify"}, step]},
        "gates": [*SIZE, {"metric": "sqnr_db", "rule": "min", "value": 20}],
        "limits": {"max_memory_mb": 256},
    }
    whole = []
    opened = sessions.session
    monkeypatch.setattr(sessions, "session", lambda model, *a, **k: whole.append(model) or opened(model, *a, **k))
    report = run(Compress.model_validate(spec), _stack(tmp_path), lambda _event: None, probe=_probe)
    assert [(each.status, each.refusal and each.refusal.code) for each in report.steps] == [
        ("refused", "too_large"),
        ("applied", None),
    ]
    assert report.latency is None
    assert report.memory is None
    assert any("verified and judged in pieces" in warning for warning in report.warnings)
    assert report.size.compressed < 0.5 * report.size.original
    assert next(each for each in report.quality if each.metric == "sqnr_db").compressed > 20
    assert not [model for model in whole if not isinstance(model, bytes)]


def test_a_job_begins_with_an_estimate_and_ends_with_it_in_the_report(job, compress):
    events = []
    report = compress(job(), [{"type": "simplify"}], events=events)
    told = [event for event in events if event["type"] == "estimate"]
    assert len(told) == 1
    assert events.index(told[0]) < next(n for n, event in enumerate(events) if event["type"] == "step_started")
    assert report.estimate.basis == "measured"
    assert (report.estimate.summary, report.estimate.seconds) == (told[0]["message"], told[0]["expected_s"])
    assert report.estimate.summary in markdown(report)
