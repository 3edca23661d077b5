import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.solve.gptq import curvature, damped, gptq, inverse_factor, root_factor
from engine.solve.gram import Gram
from engine.solve.grid import Quantized, encode, fit, round_to_nearest


def correlated(rows: int, inputs: int, rng: np.random.Generator, decay: float = 1.5) -> np.ndarray:
    """Inputs whose variances fall as those of activations do, along directions that mix all columns."""
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((inputs, inputs)))[0]
    spread = np.sqrt(np.arange(1, inputs + 1.0) ** -decay)
    return ((rng.standard_normal((rows, inputs)) * spread) @ basis.T).astype(np.float32)


def gram(x: np.ndarray) -> np.ndarray:
    found = Gram(x.shape[1])
    found.update(x)
    return found.moments().xtx


def layer_error(x: np.ndarray, weights: np.ndarray, quantized: Quantized) -> float:
    return float((((quantized.values() - weights) @ x.T) ** 2).mean())


@pytest.mark.parametrize(("order", "sweeps"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_held_out_error_of_int4_is_a_fifth_of_rounding(order: bool, sweeps: int) -> None:
    rng = np.random.default_rng(0)
    x, held_out = correlated(2048, 256, rng), correlated(2048, 256, rng)
    weights = rng.standard_normal((128, 256)) / 16
    plain = layer_error(held_out, weights, round_to_nearest(weights, bits=4, group=32))
    found = gptq(weights, gram(x), bits=4, group=32, activation_order=order, sweeps=sweeps)
    assert layer_error(held_out, weights, found) <= 0.2 * plain


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [None, 16, 48, 200])
def test_beats_rounding_on_every_kind_of_grid(bits: int, symmetric: bool, group: int | None) -> None:
    rng = np.random.default_rng(1)
    x = correlated(1024, 100, rng)
    weights = rng.standard_normal((20, 100))
    plain = layer_error(x, weights, round_to_nearest(weights, bits=bits, group=group, symmetric=symmetric))
    found = gptq(weights, gram(x), bits=bits, group=group, symmetric=symmetric)
    assert layer_error(x, weights, found) < 0.6 * plain
    if symmetric:
        assert (found.zero == 1 << (bits - 1)).all()


def test_inverse_factor_is_that_of_the_inverse() -> None:
    rng = np.random.default_rng(2)
    hessian = damped(gram(correlated(500, 30, rng)), 0.01)
    upper = inverse_factor(hessian.copy())
    np.testing.assert_allclose(upper.T @ upper, np.linalg.inv(hessian), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(upper, np.triu(upper))


def test_root_factor_is_upper_triangular_and_solves() -> None:
    rng = np.random.default_rng(2)
    xtx = gram(correlated(500, 30, rng))
    hessian = damped(xtx, 0.01)
    root = root_factor(hessian)
    np.testing.assert_allclose(root @ root.T, hessian, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(root, np.triu(root))
    right = rng.standard_normal((30, 4))
    for by_energy in (False, True):
        solved = curvature(xtx, activation_order=by_energy).solve(right)
        np.testing.assert_allclose(hessian @ solved, right, atol=1e-8)


def test_float32_is_as_good_as_float64() -> None:
    rng = np.random.default_rng(12)
    x, held_out = correlated(1024, 192, rng), correlated(1024, 192, rng)
    weights = rng.standard_normal((64, 192)) / 16
    errors = [
        layer_error(held_out, weights, gptq(weights.astype(kind), gram(x), sweeps=1))
        for kind in (np.float32, np.float64)
    ]
    assert errors[0] <= errors[1] * 1.02


def test_inverse_factor_of_a_singular_matrix_raises_its_diagonal() -> None:
    assert np.isfinite(inverse_factor(np.ones((4, 4)))).all()


def brute(weights: np.ndarray, xtx: np.ndarray, damping: float) -> np.ndarray:
    """GPTQ as the paper derives it: after each rounding, solve for the weights that are left, and refit nothing else."""
    hessian = damped(xtx, damping)
    left = weights.astype(np.float64).copy()
    scale, zero = fit(left, bits=4, symmetric=False)
    values = np.empty_like(left)
    for column in range(left.shape[1]):
        code = encode(left[:, column], scale.astype(np.float64), zero, 4)
        values[:, column] = (code.astype(np.float64) - zero) * scale
        error = left[:, column] - values[:, column]
        rest = slice(column + 1, None)
        if column + 1 < left.shape[1]:
            # min over d of (e, d) H (e, d)^T is d = e H_er H_rr^-1 for the weights that are free.
            left[:, rest] += np.outer(error, np.linalg.solve(hessian[rest, rest], hessian[rest, column]))
    return values


def test_equals_the_derivation_solved_afresh_for_every_input() -> None:
    rng = np.random.default_rng(3)
    x, weights = correlated(200, 24, rng), rng.standard_normal((10, 24))
    found = gptq(weights, gram(x), group=None, search=0, block=8)
    np.testing.assert_allclose(found.values(), brute(weights, gram(x), 0.01), atol=1e-5)


def test_blocks_change_nothing() -> None:
    rng = np.random.default_rng(4)
    x, weights = correlated(300, 96, rng), rng.standard_normal((12, 96))
    one, other = (gptq(weights, gram(x), group=16, block=block, sweeps=1) for block in (16, 96))
    assert (one.codes != other.codes).mean() < 0.01


def test_outputs_do_not_know_each_other() -> None:
    rng = np.random.default_rng(5)
    x, weights = correlated(300, 64, rng), rng.standard_normal((16, 64))
    order = rng.permutation(16)
    whole, mixed = gptq(weights, gram(x), sweeps=1), gptq(weights[order], gram(x), sweeps=1)
    np.testing.assert_array_equal(whole.codes[order], mixed.codes)
    np.testing.assert_array_equal(whole.scale[order], mixed.scale)


def test_activation_order_makes_the_order_of_inputs_irrelevant() -> None:
    rng = np.random.default_rng(6)
    x = correlated(300, 40, rng) * rng.uniform(0.2, 3, 40).astype(np.float32)
    weights, order = rng.standard_normal((8, 40)), rng.permutation(40)
    whole = gptq(weights, gram(x), group=None, activation_order=True)
    mixed = gptq(weights[:, order], gram(x)[np.ix_(order, order)], group=None, activation_order=True)
    np.testing.assert_array_equal(whole.codes[:, order], mixed.codes)


def test_dead_inputs_are_rounded_and_disturb_no_other() -> None:
    rng = np.random.default_rng(7)
    x, weights = correlated(300, 32, rng), rng.standard_normal((8, 32))
    x[:, 5] = 0
    found = gptq(weights, gram(x), group=None, search=0)
    plain = round_to_nearest(weights, group=None)
    np.testing.assert_array_equal(found.codes[:, 5], plain.codes[:, 5])


def test_without_correlation_it_is_rounding() -> None:
    weights = np.random.default_rng(8).standard_normal((8, 32))
    found, plain = gptq(weights, np.eye(32), group=8, search=0), round_to_nearest(weights, group=8)
    np.testing.assert_array_equal(found.codes, plain.codes)
    np.testing.assert_array_equal(found.scale, plain.scale)


def test_sweeps_never_raise_the_objective_and_approach_the_optimum() -> None:
    rng = np.random.default_rng(9)
    x, weights = correlated(200, 5, rng), rng.standard_normal((3, 5))
    hessian = damped(gram(x), 0.01)

    def objective(quantized: Quantized) -> np.ndarray:
        off = quantized.values() - weights
        return np.einsum("oi,ij,oj->o", off, hessian, off)

    series = [objective(gptq(weights, gram(x), group=None, sweeps=sweeps)) for sweeps in range(5)]
    for earlier, later in itertools.pairwise(series):
        assert (later <= earlier * (1 + 1e-5)).all()
    # All 16^5 roundings on the final grid: coordinate descent may stop in a local optimum, but close to the best.
    final = gptq(weights, gram(x), group=None, sweeps=4)
    every = np.indices((16,) * 5).reshape(5, -1).T
    for output in range(3):
        off = (every - final.zero[output].astype(float)) * final.scale[output] - weights[output]
        assert series[4][output] <= 3 * np.einsum("ci,ij,cj->c", off, hessian, off).min()


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 40)),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_rounding_is_at_most_half_a_step_off(
    shape: tuple[int, int], bits: int, symmetric: bool, search: int, seed: int
) -> None:
    inputs = shape[1]
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    found = round_to_nearest(weights, bits=bits, group=16, symmetric=symmetric)
    steps = np.repeat(found.scale, found.group, 1)[:, :inputs]
    # Asymmetric: the zero is rounded too, which moves both ends of the range by up to half a step.
    assert (np.abs(found.values() - weights) <= steps * (0.501 if symmetric else 1.001)).all()
    searched = round_to_nearest(weights, bits=bits, group=16, symmetric=symmetric, search=search)
    assert ((searched.values() - weights) ** 2).sum() <= ((found.values() - weights) ** 2).sum() * (1 + 1e-6)


def test_zero_weights_stay_zero() -> None:
    weights = np.zeros((3, 40), np.float32)
    weights[1] = 1e-42
    for symmetric in (False, True):
        found = round_to_nearest(weights, symmetric=symmetric)
        assert (found.values() == 0).all()
        assert (found.scale > 0).all()
