"""Learned step sizes: the gradients are those of the paper."""

import math

import numpy as np
import pytest
import torch

from engine.solve.pairs import PAIR_LIMIT, worst_integer_pairs
from engine.train.lsq import fake_quantize, pair_bounds


def by_the_paper(x, scale, low, high, numbers):
    """Equations 1 to 5 of Esser et al. 2020, number by number: rounded, slope for x, slope for the scale."""
    rounded, of_x, of_scale = [], [], []
    for value in x:
        v = value / scale
        if v <= low or v >= high:
            code = low if v <= low else high
            rounded.append(code * scale)
            of_x.append(0.0)
            of_scale.append(float(code))
        else:
            rounded.append(round(v) * scale)
            of_x.append(1.0)
            of_scale.append(-v + round(v))
    return rounded, of_x, [slope / math.sqrt(numbers * high) for slope in of_scale]


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 255), (-128, 127), (-5, 10)])
def test_gradients_are_those_of_the_paper(low, high):
    random = np.random.default_rng(high - low)
    scale = 0.37
    values = random.uniform(1.5 * (low - 1), 1.5 * (high + 1), 200) * scale
    x = torch.tensor(values, requires_grad=True)
    step = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(random.standard_normal(200))
    result = fake_quantize(x, step, low, high)
    (result * weights).sum().backward()
    rounded, of_x, of_scale = by_the_paper(values, scale, low, high, 200)
    assert result.detach().numpy() == pytest.approx(np.array(rounded))
    assert x.grad.numpy() == pytest.approx(np.array(of_x) * weights.numpy())
    assert float(step.grad) == pytest.approx(float(np.array(of_scale) @ weights.numpy()))


def test_each_scale_has_the_gradient_of_its_own_numbers():
    x = torch.tensor(np.random.default_rng(1).standard_normal((3, 10)))
    scales = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64, requires_grad=True)
    fake_quantize(x, scales, -8, 7).sum().backward()
    for row in range(3):
        alone = scales[row].detach().clone().requires_grad_()
        fake_quantize(x[row], alone, -8, 7).sum().backward()
        assert float(alone.grad) == pytest.approx(float(scales.grad[row]))


def test_the_scale_of_a_network_that_clips_too_much_grows():
    x = torch.linspace(-4, 4, 400)
    log = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (fake_quantize(x, 0.05 * log.exp(), -8, 7) - x).square().mean().backward()
        optimizer.step()
    # 0.5 is where 15 steps cover the range; the best is a little less.
    assert 0.05 * math.exp(float(log.detach())) == pytest.approx(0.51, abs=0.05)


def test_no_pair_overflows_within_its_bounds():
    rows = torch.tensor(np.random.default_rng(0).standard_normal((8, 27)) * 90)
    low, high = pair_bounds(rows, torch.ones(8, 1), PAIR_LIMIT, -127, 127)
    codes = rows.clamp(low, high).round()
    assert int(worst_integer_pairs(codes.numpy().astype(np.int8)).max()) <= PAIR_LIMIT
    # The first of each pair is as free as before.
    assert torch.equal(codes[:, 0::2], rows[:, 0::2].clamp(-127, 127).round())
    assert int(worst_integer_pairs(rows.clamp(-127, 127).round().numpy().astype(np.int8)).max()) > PAIR_LIMIT
