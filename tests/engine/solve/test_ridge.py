import numpy as np
import pytest

from engine.solve.gram import Gram, Moments
from engine.solve.ridge import affine, reconstruct


def sums(x: np.ndarray, y: np.ndarray) -> Moments:
    gram = Gram(x.shape[1], y.shape[1])
    gram.update(x.astype(np.float32), y.astype(np.float32))
    return gram.moments()


def test_finds_the_weights_and_bias_that_made_the_targets() -> None:
    rng = np.random.default_rng(0)
    x, weights, bias = rng.normal(2, 1, (4000, 12)), rng.normal(size=(5, 12)), rng.normal(size=5)
    y = x @ weights.T + bias
    found = reconstruct(sums(x[:3000], y[:3000]), np.zeros((5, 12)), None, held_out=sums(x[3000:], y[3000:]))
    np.testing.assert_allclose(found.weights, weights, atol=2e-3)
    np.testing.assert_allclose(found.bias, bias, atol=2e-2)
    assert found.better
    assert found.after < 1e-5 * found.before


def test_equals_ridge_solved_row_by_row() -> None:
    rng = np.random.default_rng(1)
    x, y, start = rng.normal(1, 1, (200, 6)), rng.normal(size=(200, 3)), rng.normal(size=(3, 6))
    found = reconstruct(sums(x, y), start, np.zeros(3))
    centred, target = x - x.mean(0), y - y.mean(0)
    weight = found.ridge * np.trace(centred.T @ centred) / 6
    tall = np.vstack([centred, np.sqrt(weight) * np.eye(6)])
    aim = np.vstack([target, np.sqrt(weight) * start.T])
    np.testing.assert_allclose(found.weights, np.linalg.lstsq(tall, aim, rcond=None)[0].T, atol=1e-4)
    np.testing.assert_allclose(found.bias, y.mean(0) - found.weights @ x.mean(0), atol=1e-4)


def test_few_rows_do_no_harm() -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(8, 64))
    x = rng.normal(size=(128, 64))
    y = x @ weights.T + rng.normal(0, 4, (128, 8))
    found = reconstruct(sums(x[:64], y[:64]), weights, None, held_out=sums(x[64:], y[64:]))
    assert found.after <= found.before


def test_directions_without_data_keep_their_weights() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 6))
    x[:, 4] = 0
    y = x @ rng.normal(size=(2, 6)).T
    start = rng.normal(size=(2, 6))
    found = reconstruct(sums(x, y), start, None, fit_bias=False)
    np.testing.assert_array_equal(found.weights[:, 4], start[:, 4])
    assert found.bias is None


def test_constant_inputs_leave_the_layer_alone() -> None:
    x, start = np.ones((50, 3)), np.ones((2, 3))
    found = reconstruct(sums(x * 0, np.ones((50, 2))), start, None, fit_bias=False)
    np.testing.assert_array_equal(found.weights, start)
    assert not found.better


def test_a_given_bias_is_kept_and_taken_into_account() -> None:
    rng = np.random.default_rng(4)
    x, weights, bias = rng.normal(3, 1, (2000, 5)), rng.normal(size=(2, 5)), np.array([10.0, -5.0])
    parts = sums(x, x @ weights.T + bias)
    found = reconstruct(parts, np.zeros((2, 5)), bias, fit_bias=False, held_out=parts)
    np.testing.assert_array_equal(found.bias, bias)
    np.testing.assert_allclose(found.weights, weights, atol=1e-2)


def test_affine_recovers_gain_and_shift_per_channel() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1000, 4))
    x[:, 3] = 2.0
    gain, shift = np.array([2.0, -1.0, 0.5, 1.0]), np.array([1.0, 0.0, -3.0, 4.0])
    y = x * gain + shift
    found, moved = affine(
        rows=1000, x_sum=x.sum(0), y_sum=y.sum(0), xx=(x * x).sum(0), xy=(x * y).sum(0), gain=np.ones(4)
    )
    np.testing.assert_allclose(found, gain, atol=5e-3)
    np.testing.assert_allclose(found * x.mean(0) + moved, y.mean(0), atol=1e-9)
    assert found[3] == pytest.approx(1.0)
