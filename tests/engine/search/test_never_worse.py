"""A goal never ends with more than a single pass by itself comes to: over a small zoo, by what was stored of the trials."""

import numpy as np
import onnx
import pytest

import engine
from engine.job import search_bench, trial
from engine.report.run_facts import Memory
from engine.search import kernel_times, ledger
from engine.search.feasibility import cost
from engine.search.values import Point, Told

PRECISIONS = ("static", "weights8")
LIMIT = {"metric": "sqnr_db", "rule": "min", "value": 15.0}


@pytest.fixture(autouse=True)
def _short(monkeypatch, short_measurements):
    del short_measurements
    monkeypatch.setattr(search_bench, "_BRIEF_RACE_S", 0.05)
    monkeypatch.setattr(trial, "_TIMED_S", dict.fromkeys(trial._TIMED_S, 0.05))
    for name in ("_SECONDS", "_PROFILED_S"):
        monkeypatch.setattr(kernel_times, name, 0.02)


@pytest.fixture
def zoo(workspace, residual_cnn, images, network):
    """Folders of jobs, by name of the network."""

    def make(name):
        if name == "convolutions":
            return workspace(residual_cnn(), name=name, image=images(96))
        net, at = network(), "image"
        for layer, (reads, makes) in enumerate([(24, 64), (64, 64), (64, 8)]):
            weight = net.normal(f"dense{layer}.w", reads, makes, scale=reads**-0.5)
            at = net.op("MatMul", at, weight, name=f"dense{layer}")
            at = net.relu(at) if makes > 8 else at
        rows = np.random.default_rng(1).normal(size=(96, 24)).astype(np.float32)
        return workspace(net.build(at, ("n", 24), ("n", 8)), name=name, image=rows)

    return make


# test_cascade.py holds it at every run of a made-up world, tests/engine/job/test_search.py of one real network.
@pytest.mark.soak
@pytest.mark.parametrize(("name", "minimise"), [("convolutions", "size"), ("dense layers", "latency")])
def test_no_single_pass_has_less_of_what_is_minimised_than_the_result(zoo, name, minimise):
    folder = zoo(name)
    report = _run(_asked(minimise), folder)
    told = [Told.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("steps/search/trial-*.json"))]
    singles = [each for each in told if each.proposal.point in [Point(precision=name) for name in PRECISIONS]]
    tried = {each.proposal.point.precision for each in singles}
    # By itself no pass is tried that costs more than the network as it is, which the target's kernels tell.
    assert tried == set(PRECISIONS) if minimise == "size" else tried <= set(PRECISIONS)
    holds = {line.trial: line.holds for line in report.search.story}
    costs = {each.number: cost(each.values, minimise) for each in told if holds[each.number]}
    found = [costs[each.number] for each in singles if each.number in costs]
    assert found or minimise == "latency", "no single pass holds the limit, so nothing was compared"
    # Times that are the same but for the noise are decided by quality.
    noise = ledger._SAME if minimise == "latency" else 1
    if report.search.chosen is None:
        # The original is what holds and costs least.
        assert minimise == "latency"
        assert noise * min(found, default=1) >= 1
    else:
        assert costs[report.search.chosen] <= noise * min(found, default=1)
        values = next(each.values for each in told if each.number == report.search.chosen)
        assert report.size.compressed - _words(folder) == values.size_bytes
    if minimise == "size":
        assert report.size.compressed - _words(folder) <= _by_hand(folder)


def _words(folder):
    """Give the bytes that the result takes to say what it is."""
    result = (folder / "out" / "model.onnx").read_bytes()
    model = onnx.load_from_string(result)
    del model.metadata_props[:]
    return len(result) - len(model.SerializeToString())


def _by_hand(folder):
    """Give the bytes that a recipe of one pass comes to."""
    passes = [{"type": "simplify"}, {"type": "quantize_weights", "bits": 8}]
    smaller = {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9}
    report = _run(engine.read_spec({"recipe": {"passes": passes}, "gates": [smaller]}), folder)
    assert not report.unchanged
    return report.size.compressed - _words(folder)


def _asked(minimise):
    """Ends by its trials: each pass by itself, and two candidates beside them."""
    return engine.read_spec(
        {
            "goal": {"minimise": minimise, "subject_to": [LIMIT]},
            "budget": {"max_trials": len(PRECISIONS) + 2, "max_seconds": 60},
            "space": {"widths": [1.0, 0.5], "ranks": [], "precisions": ["float32", *PRECISIONS], "train": False},
        }
    )


def _run(spec, folder):
    probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    return engine.run(spec, folder, lambda _event: None, probe=lambda *_: probe)
