"""What `--max-drop` limits, for a network and its data."""

import pytest

from engine.gate import Gate
from onnxpress.documents import Dataset, Model
from onnxpress.errors import UsageError
from onnxpress.loss_limit import loss_limit, parse_outputs


def _model(*outputs):
    told = [{"name": name, "shape": ["n", *sizes]} for name, sizes in outputs]
    return Model.from_document({"id": "mdl_1", "state": "ready", "inspection": {"outputs": told}})


def _data(metric=None, labelled=0, **outputs):
    inspection = {"metric": metric, "labelled": labelled}
    return Dataset.from_document({"id": "dst_1", "state": "ready", "outputs": outputs, "inspection": inspection})


CLASSIFIER = _model(("logits", [10]))


def test_labels_are_judged_by_their_metric():
    found = loss_limit(0.01, CLASSIFIER, _data("f1", 300), {})
    assert found.gate == {"metric": "f1", "rule": "max_drop", "value": 0.01}
    assert "f1 may fall by at most 1 points, by the labels" in found.words
    Gate.model_validate(found.gate)


def test_a_metric_that_is_no_share_takes_a_limit_in_its_own_unit():
    with pytest.raises(UsageError, match=r"judged by mse.*--gate 'mse max_drop"):
        loss_limit(0.01, CLASSIFIER, _data("mse", 300), {})


def test_without_labels_it_is_agreement_with_the_original():
    found = loss_limit(0.02, CLASSIFIER, _data("top1", 0), {})
    assert found.gate == {"metric": "top1_agreement", "rule": "min", "value": 0.98}
    assert "output `logits` is scores of classes by its name" in found.words


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("classes", "top1_agreement"),
        ("embedding", "cosine"),
        ("values", "r2"),
        ("mask", "mask_iou"),
        ("boxes", "box_f1"),
    ],
)
def test_an_output_is_what_the_data_or_the_job_declare(kind, metric):
    model = _model(("aux", [4]), ("y", [10]))
    by_data = loss_limit(0.01, model, _data(aux={"ignore": True}, y={"kind": kind}), {})
    by_job = loss_limit(0.01, model, _data(y={"kind": "values"}), {"y": {"kind": kind}})
    assert by_data.gate == by_job.gate == {"metric": metric, "rule": "min", "value": 0.99}
    Gate.model_validate(by_data.gate)


@pytest.mark.parametrize(
    "model", [_model(("y", [10])), _model(("scores", [10]), ("boxes", [10])), _model(("logits", [9, 9]))]
)
def test_what_is_not_known_is_asked_for_with_the_words_that_say_it(model):
    first = model.inspection["outputs"][0]["name"]
    with pytest.raises(UsageError, match=f"--output {first}=classes .*--gate 'top1_agreement min 99%'"):
        loss_limit(0.01, model, _data(), {})


def test_without_data_there_is_nothing_to_tell_a_loss_on():
    with pytest.raises(UsageError, match="--data"):
        loss_limit(0.01, CLASSIFIER, None, {})


def test_outputs_are_declared_in_words():
    declared = parse_outputs(["boxes=boxes", "a=b=ignore"])
    assert declared == {"boxes": {"kind": "boxes"}, "a=b": {"ignore": True}}
    for wrong in ("boxes", "=boxes", "boxes=box"):
        with pytest.raises(UsageError, match="NAME=KIND"):
            parse_outputs([wrong])
