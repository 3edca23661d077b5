import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.solve.gptq import damped
from engine.solve.sparse import magnitude, sparsegpt, wanda


def correlated(rows: int, inputs: int, seed: int) -> np.ndarray:
    """Inputs that vary along few directions, each a mix of columns of unlike size."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((inputs, inputs)) * np.arange(1, inputs + 1)[:, None] ** -1.0
    return rng.standard_normal((rows, inputs)) @ (directions * rng.uniform(0.2, 3, inputs))


@given(st.integers(1, 8), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_shares_are_exact(outputs: int, inputs: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, x = rng.standard_normal((outputs, inputs)), rng.standard_normal((50, inputs))
    assert (~magnitude(weights, share=share)).sum() == round(share * weights.size)
    assert ((~wanda(weights, (x**2).sum(0), share=share)).sum(1) == round(share * inputs)).all()
    solved, stays = sparsegpt(weights, x.T @ x, share=share, block=8)
    assert (~stays).sum() == round(share * weights.size)
    assert (solved[~stays] == 0).all()


@pytest.mark.parametrize("inputs", [16, 18])
def test_patterns_hold_in_every_run(inputs: int) -> None:
    rng = np.random.default_rng(1)
    weights, x = rng.standard_normal((6, inputs)), correlated(200, inputs, 1)
    masks = [
        magnitude(weights, pattern=(2, 4)),
        wanda(weights, (x**2).sum(0), pattern=(2, 4)),
        sparsegpt(weights, x.T @ x, pattern=(2, 4), block=8)[1],
    ]
    for mask in masks:
        assert (mask[:, :16].reshape(6, 4, 4).sum(-1) == 2).all()
        # What a short last run lacks counts as zeros.
        assert mask[:, 16:].all()


def test_magnitude_by_threshold() -> None:
    np.testing.assert_array_equal(magnitude(np.array([[0.1, -0.5, 0.3]]), threshold=0.3), [[False, True, True]])


def test_wanda_weighs_by_the_input() -> None:
    np.testing.assert_array_equal(wanda(np.array([[1.0, 0.5]]), np.array([1.0, 100.0]), share=0.5), [[False, True]])


def test_exactly_one_of_share_and_pattern() -> None:
    for arguments in ({}, {"share": 0.5, "pattern": (2, 4)}):
        with pytest.raises(ValueError, match="share or a pattern"):
            sparsegpt(np.ones((2, 4)), np.eye(4), **arguments)
        with pytest.raises(ValueError, match="share or a pattern"):
            magnitude(np.ones((2, 4)), **arguments)
    with pytest.raises(ValueError, match="0 < n < m"):
        magnitude(np.ones((2, 4)), pattern=(4, 4))


def test_each_method_beats_the_simpler_one_on_held_out_inputs() -> None:
    rng = np.random.default_rng(2)
    x = correlated(2000, 64, 3)
    train, test = x[:1000], x[1000:]
    weights = rng.standard_normal((32, 64))

    def error(kept: np.ndarray) -> float:
        return float(((test @ (kept - weights).T) ** 2).mean())

    plain = error(weights * magnitude(weights, share=0.5))
    weighed = error(weights * wanda(weights, (train**2).sum(0), share=0.5))
    solved = error(sparsegpt(weights, train.T @ train, share=0.5)[0])
    assert solved < 0.5 * weighed
    assert weighed < 0.8 * plain


def test_sweeps_reach_least_squares_on_the_mask() -> None:
    rng = np.random.default_rng(3)
    x, weights = correlated(300, 8, 4), rng.standard_normal((4, 8))
    hessian = damped(x.T @ x, 0.01)
    costs = []
    for sweeps in (0, 1, 5, 500):
        solved, stays = sparsegpt(weights, x.T @ x, pattern=(2, 4), sweeps=sweeps)
        off = solved - weights
        costs.append(float(np.einsum("oi,ij,oj->", off, hessian, off)))
        assert (solved[~stays] == 0).all()
    assert costs == sorted(costs, reverse=True)
    for row, free in enumerate(stays):
        best = np.linalg.solve(hessian[np.ix_(free, free)], hessian[free] @ weights[row])
        np.testing.assert_allclose(solved[row, free], best, rtol=1e-3, atol=1e-3)
