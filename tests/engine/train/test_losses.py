"""Each loss against the same thing computed plainly, and the choice of the loss by what an output is."""

import numpy as np
import pytest
import torch

from engine.report.values import OutputReport
from engine.train import losses


def _softmax(scores, axis=-1):
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def _tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


def _report(name, kind, **more):
    return OutputReport(name=name, kind=kind, reason="for the test", weight=1.0, ignored=False, main=False, **more)


@pytest.fixture
def pair():
    def make(*shape):
        random = np.random.default_rng(3)
        return random.normal(size=shape) * 2, random.normal(size=shape) * 2

    return make


@pytest.mark.parametrize(("shape", "axis"), [((6, 5), -1), ((2, 4, 3, 3), -3)])
def test_divergence_is_the_kl_of_softened_distributions_times_the_temperature_squared(pair, shape, axis):
    own, other = pair(*shape)
    p, q = _softmax(other / 3, axis), _softmax(own / 3, axis)
    plain = 9 * (p * np.log(p / q)).sum(axis=axis).mean()
    assert float(losses.Divergence(axis, 3.0)(*_tensors(own, other), None)) == pytest.approx(plain, rel=1e-5)


def test_distributions_are_compared_as_their_logits_would_be(pair):
    own, other = pair(6, 5)
    by_logits = losses.Divergence(-1, 2.0)(*_tensors(own, other), None)
    by_shares = losses.Divergence(-1, 2.0, probabilities=True)(*_tensors(_softmax(own), _softmax(other)), None)
    assert float(by_shares) == pytest.approx(float(by_logits), rel=1e-4)


def test_classes_that_are_ruled_out_give_no_nan(pair):
    own, other = pair(4, 5)
    own[:, 0] = other[:, 0] = -np.inf
    student = torch.tensor(own, dtype=torch.float32, requires_grad=True)
    loss = losses.Divergence(-1)(student, torch.tensor(other, dtype=torch.float32), None)
    loss.backward()
    p, q = _softmax(other[:, 1:]), _softmax(own[:, 1:])
    assert float(loss.detach()) == pytest.approx((p * np.log(p / q)).sum(axis=-1).mean(), rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_padded_positions_do_not_count(pair):
    own, other = pair(2, 3, 5)
    valid = np.array([[1, 1, 0], [1, 0, 0]], bool)
    own[~valid] = 100.0
    p, q = _softmax(other), _softmax(own)
    each = (p * np.log(p / q)).sum(axis=-1)
    plain = np.mean([each[0, :2].mean(), each[1, 0]])
    found = losses.Divergence(-1)(*_tensors(own, other), torch.tensor(valid))
    assert float(found) == pytest.approx(plain, rel=1e-5)


def test_binary_divergence_is_the_kl_of_each_decision(pair):
    own, other = pair(4, 7)
    p, q = 1 / (1 + np.exp(-other)), 1 / (1 + np.exp(-own))
    plain = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(losses.BinaryDivergence()(*_tensors(own, other), None)) == pytest.approx(plain, rel=1e-4)
    shares = losses.BinaryDivergence(probabilities=True)(*_tensors(q, p), None)
    assert float(shares) == pytest.approx(plain, rel=1e-3)


def test_squared_error_is_a_share_of_the_teachers_variance_by_column(pair):
    own, other = pair(50, 3)
    other *= [1.0, 10.0, 100.0]
    own *= [1.0, 10.0, 100.0]
    loss = losses.ScaledError(losses.variance([other[:20], other[20:]]))
    plain = np.mean((own - other) ** 2 / other.var(axis=0))
    assert float(loss(*_tensors(own, other), None)) == pytest.approx(plain, rel=1e-4)


def test_direction_adds_what_the_cosine_lacks(pair):
    own, other = pair(8, 16)
    error = losses.ScaledError(losses.variance([other]))
    cosines = (own * other).sum(-1) / np.linalg.norm(own, axis=-1) / np.linalg.norm(other, axis=-1)
    plain = (1 - cosines).mean() + float(error(*_tensors(own, other), None))
    assert float(losses.Direction(error)(*_tensors(own, other), None)) == pytest.approx(plain, rel=1e-5)


def test_cross_entropy_leaves_out_what_has_no_label(pair):
    own, _ = pair(3, 4, 5)
    labels = np.array([[0, 1, -1, 2], [-1, -1, -1, -1], [4, 4, 4, 4]])
    logs = np.log(_softmax(own))
    plain = [-np.mean([logs[0, 0, 0], logs[0, 1, 1], logs[0, 3, 2]]), 0.0, -logs[2, :, 4].mean()]
    found = losses.CrossEntropy(-1)(_tensors(own)[0], torch.tensor(labels))
    assert found.numpy() == pytest.approx(np.array(plain), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "unit", "wanted"),
    [
        ("classes", (8, 5), False, losses.Divergence),
        ("classes", (8, 1), False, losses.BinaryDivergence),
        ("tokens", (2, 4, 9), False, losses.Divergence),
        ("mask", (2, 1, 4, 4), True, losses.BinaryDivergence),
        ("mask", (2, 3, 4, 4), False, losses.Divergence),
        ("embedding", (8, 16), False, losses.Direction),
        ("values", (8, 3), False, losses.ScaledError),
        ("boxes", (2, 7, 6), False, losses.ScaledError),
        ("state", (2, 7), False, losses.ScaledError),
    ],
)
def test_the_kind_of_an_output_decides_its_loss_and_a_perfect_student_loses_nothing(pair, kind, shape, unit, wanted):
    said = pair(*shape)[1].astype(np.float32)
    said = 1 / (1 + np.exp(-said)) if unit else said
    found = losses.teacher_loss([_report("out", kind)], {"out": [said]}, 2.0)
    assert isinstance(found.outputs["out"].loss, wanted)
    tensor = torch.tensor(said)
    assert float(found({"out": tensor}, {"out": tensor}, None)) == pytest.approx(0.0, abs=1e-5)
    assert float(found({"out": tensor.flip(0)}, {"out": tensor}, None)) > 1e-3


def test_what_cannot_be_learnt_is_named_with_the_reason():
    reports = [
        _report("ids", "tokens"),
        _report("unread", "values").model_copy(update={"ignored": True}),
        _report("rows", "boxes"),
        _report("lost", "values"),
    ]
    said = {"ids": [np.zeros((2, 3), np.int64)], "unread": [np.zeros((2, 3), np.float32)],
            "rows": [np.zeros((1, 3, 6), np.float32), np.zeros((1, 4, 6), np.float32)]}  # fmt: skip
    found = losses.teacher_loss(reports, said, 2.0)
    assert not found.outputs
    assert found.left_out == {
        "ids": "whole numbers have no gradient",
        "unread": "nobody reads it",
        "rows": "the data decide how many rows it has",
        "lost": "the teacher does not give it",
    }
