"""How the networks of wheels are judged, and what a result has to hold."""

import numpy as np
import pytest

from benchmarks.field import judging, measure, networks, tables
from benchmarks.field.measure import Result


def test_scores_are_larger_where_answers_are_closer():
    original = [np.array([[0.9, 0.1, 0.2]], np.float32), np.array([[0.1, 0.2, 0.7]], np.float32)]
    near = [one + np.float32(0.01) for one in original]
    far = [one[:, ::-1] for one in original]
    for judge in (judging.SQNR, judging.ERROR, judging.CLASSES, judging.mask_at(0.3)):
        assert judge.score(original, original) >= judge.score(near, original) >= judge.score(far, original), judge.name
    assert judging.SQNR.score(original, original) == 120
    assert judging.CLASSES.score(far, original) == 0
    assert judging.mask_at(5).score(far, original) == 100


def test_lines_are_read_without_repeats_and_blanks():
    def steps(*classes):
        return np.eye(4, dtype=np.float32)[list(classes)][None]

    assert judging.READ.score([steps(0, 2, 2, 0, 3)], [steps(2, 0, 0, 3, 3)]) == 100
    assert judging.READ.score([steps(2, 0, 2)], [steps(2, 2, 2)]) == 0


@pytest.fixture
def network():
    (found,) = networks.named(["dnsmos"])
    return found


def made(maker="onnxpress", setting="static", **keys):
    usual = {
        "bytes": 1000,
        "score": -0.05,
        "speed": 2.0,
        "seconds": 10.0,
        "peak_bytes": 1 << 28,
        "outputs": {"y": "values"},
    }
    return Result(maker, setting, **(usual | keys))


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({}, {}, []),
        # A refusal in words is an answer, an error of the machine room is none.
        ({"problem": "ModelUnsupportedError: The network has no inputs."}, {}, []),
        ({"problem": "KeyError: 'x'"}, {}, ["traceback"]),
        ({"outputs": {"y": "classes"}}, {}, ["judged as classes"]),
        ({"seconds": 300.0}, {}, ["300 s"]),
        # A user waits by the wall's clock, however little the processor did meanwhile.
        ({"seconds": 300.0, "cpu_seconds": 100.0}, {}, ["300 s"]),
        ({"seconds": 100.0, "cpu_seconds": 300.0}, {}, []),
        # What was not measured is no bar.
        ({"score": -0.5, "speed": None}, {}, []),
        ({"peak_bytes": 3 << 30}, {}, ["3.2 GB"]),
        ({"score": -0.5}, {}, ["is better"]),
        ({"score": -0.5}, {"bytes": 2000}, []),
        ({"score": -0.5}, {"speed": 1.0}, []),
        ({"score": -0.055}, {}, []),
    ],
)
def test_bars(network, ours, theirs, told):
    mine, other = made(**ours), made("onnxruntime", outputs={}, **theirs)
    found = list(measure._faults(network, mine, [mine, other]))
    assert len(found) == len(told)
    assert all(words in fault for words, fault in zip(told, found, strict=True))
    assert list(measure._faults(network, other, [mine, other])) == []


def test_a_table_says_each_thing_once(network):
    ours = [
        made(setting=setting, steps=("simplify refused: The network is as simple as it gets.", f"{step} refused: No."))
        for setting, step in (("static", "quantize_static"), ("mixed", "mixed_precision"))
    ]
    refused = made(setting="dynamic", problem="SpecInvalidError: Step 3: The network has no MatMul.", bytes=None)
    others = [made("onnxruntime", setting=setting) for setting in ("static", "static per tensor", "dynamic")]
    measured = tables.Measured(network, [made("fp32"), ours[0], refused, ours[1], *others])
    static, dynamic, mixed = measured.rows()
    assert static[5].startswith("static: 1.00x, 2.00x, -0.05")
    assert "; per tensor: " in static[5]
    assert mixed[5] == "as above"
    assert dynamic[-1] == "Step 3: The network has no MatMul."
    assert static[-1] == "values; quantize_static refused: No"


def test_names_are_known_and_samples_counted():
    assert len({network.name for network in networks.NETWORKS}) == len(networks.NETWORKS)
    assert all(network.samples == sum(network.counts) and min(network.counts) > 0 for network in networks.NETWORKS)
