"""GPTQ on a given grid: less error on correlated inputs than nearest, and pairs that cannot overflow."""

import numpy as np
import pytest

from engine.quantize import integer_types
from engine.quantize.rounding import round_with
from engine.solve.pairs import PAIR_LIMIT


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    mixing = random.standard_normal((48, 48)) * np.geomspace(1, 0.02, 48)
    inputs = random.standard_normal((4000, 48)) @ mixing
    return random.standard_normal((24, 48)).astype(np.float32), inputs


@pytest.mark.parametrize("rule", ["int8", "int7", "uint8", "pairs"])
def test_outputs_change_less_than_by_rounding_to_nearest(problem, rule):
    weights, inputs = problem
    nearest = integer_types.quantize_weight(weights, rule, per_channel=True)
    codes = round_with(weights, inputs.T @ inputs, nearest.scale, rule)
    before, after = (
        np.square(inputs @ (values * nearest.scale[:, None] - weights).T).sum() for values in (nearest.values, codes)
    )
    assert after < 0.5 * before
    assert np.abs(codes).max() <= (64 if rule == "int7" else 127)


def test_no_pair_can_overflow_even_on_a_finer_grid(problem):
    weights, inputs = problem
    scale = np.abs(weights).max(1) / 127
    codes = round_with(weights, inputs.T @ inputs, scale.astype(np.float32), "pairs").astype(int)
    pairs = codes.reshape(len(codes), -1, 2)
    same_sign = pairs[..., 0] * pairs[..., 1] > 0
    assert np.abs(pairs.sum(-1))[same_sign].max() <= PAIR_LIMIT


def test_inputs_that_were_always_zero(problem):
    weights, inputs = problem
    inputs[:, 5] = 0
    scale = integer_types.quantize_weight(weights, "int8", per_channel=True).scale
    codes = round_with(weights, inputs.T @ inputs, scale, "int8")
    np.testing.assert_array_equal(codes[:, 5], np.rint(weights[:, 5] / scale))
