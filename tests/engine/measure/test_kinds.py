"""Networks of every sort: each output is taken for what it is without being told, and one that is broken alone is refused."""

import judged_networks as networks
import numpy as np
import pytest

from engine.data.dataset import Samples
from engine.gate import KIND_METRICS
from engine.measure.acceptance import losses
from engine.measure.kinds import KINDS, Subject
from engine.measure.quality import Evaluator
from engine.outputs import OutputDeclaration


def judge(built, candidates, **options):
    """Give what the outputs were taken for, and for each candidate its qualities and what speaks against it."""
    with Evaluator(built.session(), built.samples(), graph=built.graph(), **options) as evaluator:
        found = [evaluator.evaluate(each.session()) for each in candidates]
        return evaluator.outputs, [(quality, [refusal.reason for refusal in losses(quality, ())]) for quality in found]


def noisy(share, seed=0):
    random = np.random.default_rng(seed)
    return lambda array: array + random.normal(size=array.shape) * array.std() * share


def constant(array):
    return np.full_like(array, array.mean())


CASES = {
    "a normalised sentence embedding": (
        networks.sentence_embedding(normalised=True),
        {"out": "embedding"},
        {"out": {"w2": noisy(1.5)}},
        {"w2": noisy(0.05)},
    ),
    "a sentence embedding that is a mean": (
        networks.sentence_embedding(normalised=False),
        {"out": "embedding"},
        {"out": {"table": noisy(1.5)}},
        {"table": noisy(0.05)},
    ),
    "a raw detector": (
        networks.raw_detector(),
        {"output0": "boxes"},
        {"output0": {"places8": lambda array: array + np.array([0, 0, 6, 6]).reshape(1, 4, 1)}},
        {"see8": noisy(0.02), "see16": noisy(0.02), "grow8": noisy(0.05)},
    ),
    "a detector with NMS inside": (
        networks.detector_with_nms(),
        {"final": "boxes"},
        {"final": {"places": lambda array: array * np.array([1, 1, 2.5, 1]).reshape(1, 4, 1)}},
        {"see": lambda array: array * 1.002},
    ),
    "a detector with its outputs apart": (
        networks.detector_with_nms(apart=True),
        {"1201": "boxes", "1202": "boxes", "1203": "boxes"},
        {"1201": {"kinds": lambda array: (array + 1) % 3}},
        {"see": lambda array: array * 1.002},
    ),
    "a CNN-GRU with its state": (
        networks.recurrent(),
        {"speech": "classes", "hn": "state"},
        {"speech": {"head": lambda array: -array}},
        {"head": noisy(0.002)},
    ),
    "a two-headed regression": (
        networks.two_headed_regression(),
        {"y0": "values", "y1": "values"},
        {"y0": {"w_scores": constant}, "y1": {"w_age": constant}},
        {"w_scores": noisy(0.01), "w_age": noisy(0.01)},
    ),
    "a language model": (
        networks.language_model(),
        {"logits": "tokens", "present.0.key": "state"},
        {"logits": {"head": noisy(1.0)}},
        {"head": noisy(0.01)},
    ),
    "a segmentation": (
        networks.segmentation(),
        {"out": "mask"},
        {"out": {"less": lambda array: array + 12}},
        {"see": noisy(0.01)},
    ),
    "rows that the data count": (
        networks.kept_rows(),
        {"y": "values"},
        {"y": {"last": lambda array: -array}},
        {"last": noisy(0.01)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_output_is_judged_as_what_it_is(name):
    built, kinds, broken, harmless = CASES[name]
    changes = [*broken.values(), harmless]
    outputs, found = judge(built, [built, *(built.broken(**change) for change in changes)])
    assert {each.name: each.kind for each in outputs} == kinds
    assert all(each.reason and not each.ignored for each in outputs)
    (_, of_itself), *of_broken, (_, of_harmless) = found
    assert of_itself == []
    assert of_harmless == []
    for output, (_, reasons) in zip(broken, of_broken, strict=True):
        assert [reason.split("`")[1] for reason in reasons] == [output] * len(reasons)
        assert reasons
        assert f"({kinds[output]})" in reasons[0]


def test_a_state_that_is_broken_alone_is_refused():
    built = networks.recurrent()
    _, ((quality, reasons),) = judge(built, [networks.recurrent(state_turned=True)])
    assert len(reasons) == 1
    assert reasons[0].startswith("Output `hn` (state): ")
    assert next(each for each in quality if each.output == "hn").weight == 0.1
    assert [each.compressed for each in quality if each.metric == "top1_agreement"] == [1.0]
    # The output that decides something comes first, whatever the network's order.
    assert quality[0].output == "speech"


def test_a_declaration_goes_before_what_is_recognised():
    built = networks.two_headed_regression()
    broken = built.broken(w_age=constant)
    declared = {"y0": OutputDeclaration(kind="classes", weight=2.0), "y1": OutputDeclaration(ignore=True)}
    outputs, ((quality, reasons),) = judge(built, [broken], declared=declared)
    assert reasons == []
    assert [(each.name, each.kind, each.ignored, each.weight) for each in outputs] == [
        ("y0", "classes", False, 2.0),
        ("y1", None, True, 1.0),
    ]
    assert {each.output for each in quality} == {"y0"}
    assert "top1_agreement" in {each.metric for each in quality}


def test_labels_belong_to_the_output_that_they_fit():
    """Class numbers fit the regression's one column by a threshold too, but that cannot name them."""
    draft = networks.Draft()
    draft.op("MatMul", "x", draft.normal("w1", 6, 1), out="age")
    draft.op("MatMul", "x", draft.normal("w2", 6, 4), out="kinds")
    x = draft.random.normal(size=(80, 6)).astype(np.float32)
    built = draft.built(
        {"x": (["n", 6], networks.FLOAT)},
        {"age": (["n", 1], networks.FLOAT), "kinds": (["n", 4], networks.FLOAT)},
        {"x": x},
    )
    labels = (x @ draft.weights["w2"]).argmax(1)
    outputs, ((quality, reasons), (_, of_broken)) = judge(
        built, [built, built.broken(w1=constant)], labels=labels, metric="top1"
    )
    assert [(each.name, each.kind, each.main) for each in outputs] == [
        ("age", "values", False),
        ("kinds", "classes", True),
    ]
    assert (quality[0].metric, quality[0].output, quality[0].original) == ("top1", "kinds", 1.0)
    assert reasons == []
    # The labelled output is as good as ever, and yet the other one is lost.
    assert {reason.split("`")[1] for reason in of_broken} == {"age"}


def test_padded_positions_do_not_count():
    """Two networks that differ only in what they make of padding are the same embedding."""
    built = networks.sentence_embedding(normalised=False)
    model = built.model
    del model.graph.output[:]
    hidden = next(node.output[0] for node in model.graph.node if node.op_type == "MatMul" and "w2" in node.input)
    model.graph.node.add(op_type="Identity", input=[hidden], output=["last_hidden_state"])
    model.graph.output.extend(
        [networks.helper.make_tensor_value_info("last_hidden_state", networks.FLOAT, ["n", "s", 48])]
    )
    built.arrays["input_ids"] = np.where(built.arrays["attention_mask"], built.arrays["input_ids"], 0)
    padding = built.broken(table=lambda array: np.concatenate([-3 * array[:1], array[1:]]))
    used = built.broken(table=lambda array: np.concatenate([array[:1], -3 * array[1:]]))
    for each in (built, padding, used):
        # The word of padding is no word of the sentences.
        each.arrays["input_ids"] = np.where(built.arrays["attention_mask"], np.maximum(built.arrays["input_ids"], 1), 0)
    outputs, ((quality, reasons), (_, of_used)) = judge(built, [padding, used])
    assert outputs[0].kind == "embedding"
    assert reasons == []
    assert all(each.compressed == pytest.approx(1) for each in quality if each.metric != "sqnr_db")
    assert of_used


def test_neighbours_see_what_the_angle_does_not():
    """Vectors with one large common part keep their angle to the original's when all that tells them apart is gone."""
    random = np.random.default_rng(0)
    common, own = random.normal(size=64) * 10, random.normal(size=(200, 64))
    original, collapsed = common + own, common + random.normal(size=(200, 64))
    comparison = KINDS["embedding"].read(Subject("y"), [])()
    for at in range(0, 200, 32):
        comparison.add({"y": original[at : at + 32]}, {"y": collapsed[at : at + 32]}, None)
    found = {each.metric: each for each in comparison.qualities()}
    assert found["cosine"].compressed > 0.98
    assert found["neighbours"].compressed < 0.2
    assert [floor.metric for floor in KINDS["embedding"].floors if floor.metric in found
            and floor.broken_by(found[floor.metric])] == ["neighbours"]  # fmt: skip


def test_kinds_measure_what_gates_may_ask_of_them():
    assert {name: kind.metrics for name, kind in KINDS.items()} == dict(KIND_METRICS)
    for kind in KINDS.values():
        assert {floor.metric for floor in kind.floors} <= set(kind.metrics)


@pytest.mark.parametrize("name", CASES)
def test_only_the_metrics_of_its_kind_are_measured(name):
    built, kinds, _, _ = CASES[name]
    outputs, ((quality, _),) = judge(built, [built])
    for each in quality:
        assert each.kind == kinds[each.output]
        assert each.metric in KIND_METRICS[each.kind]
        assert each.interval.low <= each.compressed <= each.interval.high
    assert {each.output for each in quality} == {each.name for each in outputs if each.judged_with is None}


def test_rows_are_never_counted_by_the_first_sample():
    """One row for the first sample and six for the others: all rows count, whichever comes first."""

    class Port:
        shape = (1, 4)

    class Detector:
        inputs = (Port(),)

        def __init__(self, *, spoiled):
            self._spoiled = spoiled

        def run(self, feed):
            rows = int(feed["x"][0, 0])
            found = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5) + 1
            found[1:] *= -3 if self._spoiled else 1
            return {"out": found}

    for first in (1, 6):
        x = np.full((20, 4), 6, np.float32)
        x[0] = first
        samples = Samples({"x": x}, {"x": x.dtype}, np.arange(20))
        with Evaluator(Detector(spoiled=False), samples) as evaluator:
            whole = {each.metric: each.compressed for each in evaluator.evaluate(Detector(spoiled=False))}
            spoiled = {each.metric: each.compressed for each in evaluator.evaluate(Detector(spoiled=True))}
        assert whole["sqnr_db"] == 200
        assert spoiled["sqnr_db"] < 3


def test_what_cannot_be_compared_is_left_out_with_its_reason():
    class Port:
        shape = ("n", 4)

    class Network:
        inputs = (Port(),)

        def run(self, feed):
            x = feed["x"]
            return {"map": [{"a": 1.0}] * len(x), "name": np.array([f"kind {row[0] > 0}" for row in x], object), "y": x}

    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    with Evaluator(Network(), Samples({"x": x}, {"x": x.dtype}, np.arange(20))) as evaluator:
        found = evaluator.evaluate(Network())
    kinds = {each.name: (each.kind, each.reason) for each in evaluator.outputs}
    assert kinds["map"] == (None, "it is a sequence or a map, which is not compared")
    assert kinds["name"][0] == "classes"
    assert {each.output for each in found} == {"name", "y"}
