import numpy as np
import pytest

from engine.solve.gram import Window, patches
from engine.solve.lowrank import low_rank, tucker


def inputs_like(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)) @ (
        rng.standard_normal((columns, columns)) * np.arange(1, columns + 1) ** -1.0
    )


def test_full_rank_is_exact_and_errors_are_those_told() -> None:
    rng = np.random.default_rng(0)
    x, weights = inputs_like(500, 20, 1), rng.standard_normal((12, 20))
    full = low_rank(weights, x.T @ x, 12)
    np.testing.assert_allclose(full.values(), weights, atol=1e-8)
    assert full.lost[0] == pytest.approx(1.0)
    assert full.lost[-1] == 0.0
    for rank in (2, 5, 9):
        found = low_rank(weights, x.T @ x, rank)
        assert found.down.shape == (rank, 20)
        assert found.up.shape == (12, rank)
        energy = ((x @ weights.T) ** 2).sum()
        assert ((x @ (found.values() - weights).T) ** 2).sum() / energy == pytest.approx(
            found.lost[rank], rel=0.05, abs=1e-4
        )


def test_beats_plain_truncation_on_held_out_inputs() -> None:
    rng = np.random.default_rng(1)
    x = inputs_like(2000, 40, 2)
    weights = rng.standard_normal((30, 40))
    u, s, vt = np.linalg.svd(weights)
    plain = (u[:, :8] * s[:8]) @ vt[:8]
    found = low_rank(weights, x[:1000].T @ x[:1000], 8).values()

    def error(kept: np.ndarray) -> float:
        return float(((x[1000:] @ (kept - weights).T) ** 2).mean())

    assert error(found) < 0.3 * error(plain)


def test_rank_must_fit() -> None:
    with pytest.raises(ValueError, match="outside 1"):
        low_rank(np.ones((3, 4)), np.eye(4), 4)
    with pytest.raises(ValueError, match="do not fit"):
        tucker(np.ones((3, 4, 3, 3)), np.eye(36), (4, 2))


def test_tucker_of_full_rank_is_exact() -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((6, 4, 3, 3))
    x = inputs_like(800, 36, 3)
    found = tucker(weights, x.T @ x, (6, 4))
    np.testing.assert_allclose(found.values(), weights, atol=1e-4)


def test_tucker_recovers_weights_that_have_the_form() -> None:
    rng = np.random.default_rng(3)
    up, core, down = rng.standard_normal((8, 3)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((2, 5))
    weights = np.einsum("or,rsij,sc->ocij", up, core, down)
    x = inputs_like(800, 45, 4)
    found = tucker(weights, x.T @ x, (3, 2))
    assert found.down.shape == (2, 5)
    assert found.core.shape == (3, 2, 3, 3)
    np.testing.assert_allclose(found.values(), weights, atol=1e-4)


def test_tucker_sees_the_activations() -> None:
    rng = np.random.default_rng(4)
    # Images of three smooth sources mixed into eight channels: the channels' own metric is far from round.
    sources = np.cumsum(rng.standard_normal((64, 3, 9, 9)), axis=-1)
    images = np.einsum("nshw,cs->nchw", sources, rng.standard_normal((8, 3))) + 0.1 * rng.standard_normal((64, 8, 9, 9))
    rows = patches(images, Window((3, 3)))[0]
    train, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    weights = rng.standard_normal((8, 8, 3, 3))
    aware, blind = tucker(weights, train.T @ train, (5, 3)), tucker(weights, np.eye(72), (5, 3))

    def error(kept: np.ndarray) -> float:
        return float(((test @ (kept - weights).reshape(8, -1).T) ** 2).mean())

    assert error(aware.values()) < 0.5 * error(blind.values())
