import tracemalloc

import numpy as np
import pytest

from engine.solve.input_sums import InputSums


def rows(seed: int, count: int = 700, inputs: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    was = rng.standard_normal((count, inputs)).astype(np.float32)
    return (was + 0.1 * rng.standard_normal(was.shape)).astype(np.float32), was


@pytest.mark.parametrize("batch", [1, 33, 700])
def test_sums_are_the_same_for_every_batch_size(batch: int) -> None:
    now, was = rows(0)
    whole, cut = InputSums(24, block=128), InputSums(24, block=128)
    whole.update(now, was)
    for start in range(0, len(now), batch):
        cut.update(now[start : start + batch], was[start : start + batch])
    one, other = whole.result(), cut.result()
    np.testing.assert_array_equal(one.xtx, other.xtx)
    np.testing.assert_array_equal(one.lack, other.lack)
    np.testing.assert_allclose(one.xtx, now.T.astype(np.float64) @ now, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(one.lack, now.T.astype(np.float64) @ (was - now), rtol=1e-3, atol=1e-2)
    assert one.rows == 700


def test_the_pull_of_known_weights_is_that_of_the_sums() -> None:
    now, was = rows(1)
    weights = np.random.default_rng(2).standard_normal((8, 24)).astype(np.float32)
    general, narrow = InputSums(24), InputSums(24, weights)
    for sums in (general, narrow):
        sums.update(now, was)
    some = np.array([1, 5])
    pulls = [sums.result().pull(weights[some], some) for sums in (general, narrow)]
    np.testing.assert_allclose(*pulls, rtol=1e-3, atol=1e-3)


def test_equal_inputs_lack_nothing() -> None:
    now, _ = rows(3)
    sums = InputSums(24)
    sums.update(now, now)
    found = sums.result()
    assert found.lack is None
    assert found.pull(np.ones((2, 24), np.float32), slice(None)) is None


def test_held_out_rows_give_the_error_of_a_candidate() -> None:
    now, was = rows(4)
    weights = np.random.default_rng(5).standard_normal((3, 24)).astype(np.float32)
    sums = InputSums(24)
    sums.update(now, was)
    sums.hold_out(now[:50], was[:50])
    found = sums.result()
    errors = found.errors(found.targets(weights), 1.1 * weights)
    expected = np.square(now[:50] @ (1.1 * weights).T - was[:50] @ weights.T).mean(0)
    np.testing.assert_allclose(errors, expected, rtol=1e-4)


@pytest.mark.parametrize("outputs", [None, 500])
def test_sums_do_not_depend_on_the_number_of_threads(outputs: int | None) -> None:
    now, was = rows(6, 900, 800)
    weights = None if outputs is None else np.random.default_rng(7).standard_normal((outputs, 800)).astype(np.float32)
    found = []
    for threads in (1, 2):
        sums = InputSums(800, weights, block=512, threads=threads)
        sums.update(now, was)
        found.append(sums.result())
    np.testing.assert_array_equal(found[0].xtx, found[1].xtx)
    np.testing.assert_array_equal(found[0].lack, found[1].lack)
    np.testing.assert_allclose(found[0].xtx, now.T.astype(np.float64) @ now, rtol=1e-3, atol=0.05)
    lack = now.T.astype(np.float64) @ (was - now)
    np.testing.assert_allclose(found[0].lack, lack if weights is None else lack @ weights.T, rtol=1e-2, atol=0.05)


def test_nothing_but_the_result_stays_in_memory() -> None:
    now, was = rows(8, 400, 256)
    tracemalloc.start()
    try:
        sums = InputSums(256)
        sums.update(now, was)
        sums.hold_out(now, was)
        found = sums.result()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert found.lack is not None
    assert kept < 1.1 * sum(each.nbytes for each in (found.xtx, found.lack, found.held_out, found.held_out_original))
