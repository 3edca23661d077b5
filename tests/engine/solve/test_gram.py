import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.solve.gram import Gram, Window, patches, pixels, positions


def test_sums_equal_those_of_all_rows_at_once() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 1, (500, 7)).astype(np.float32), rng.normal(size=(500, 3)).astype(np.float32)
    gram = Gram(7, 3, block=64)
    gram.update(x[:130], y[:130])
    gram.update(x[130:], y[130:])
    found = gram.moments()
    wide, tall = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(found.xtx, wide.T @ wide, rtol=1e-5)
    np.testing.assert_allclose(found.xty, wide.T @ tall, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.x_sum, wide.sum(0))
    np.testing.assert_allclose(found.y_squares, (tall**2).sum(0))
    assert found.rows == 500


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_no_bit_depends_on_how_rows_are_batched(cuts: list[int]) -> None:
    rows = sum(cuts)
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 5)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)
    whole, parts = Gram(5, 2, block=16), Gram(5, 2, block=16)
    whole.update(x, y)
    start = 0
    for cut in cuts:
        parts.update(x[start : start + cut], y[start : start + cut])
        start += cut
    for name in ("xtx", "xty", "x_sum", "y_sum", "y_squares"):
        np.testing.assert_array_equal(getattr(whole.moments(), name), getattr(parts.moments(), name))


def test_order_of_rows_matters_only_by_rounding() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3000, 6)).astype(np.float32)
    one, other = Gram(6), Gram(6)
    one.update(x)
    other.update(x[rng.permutation(3000)])
    np.testing.assert_allclose(one.moments().xtx, other.moments().xtx, rtol=1e-5, atol=1e-2)


def test_error_from_sums_is_the_error_on_rows() -> None:
    rng = np.random.default_rng(3)
    x, w, b = rng.normal(size=(300, 6)), rng.normal(size=(4, 6)), rng.normal(size=4)
    y = x @ w.T + b + rng.normal(0, 0.3, (300, 4))
    gram = Gram(6, 4)
    gram.update(x.astype(np.float32), y.astype(np.float32))
    assert gram.moments().error(w, b) == pytest.approx(float(((x @ w.T + b - y) ** 2).mean()), rel=1e-4)


def test_targets_must_have_as_many_rows() -> None:
    with pytest.raises(ValueError, match="groups and rows"):
        Gram(3, 2).update(np.zeros((4, 3), np.float32), np.zeros((5, 2), np.float32))


@given(
    st.integers(1, 2).flatmap(
        lambda axes: st.tuples(
            st.lists(st.integers(1, 3), min_size=axes, max_size=axes),
            st.lists(st.integers(1, 3), min_size=axes, max_size=axes),
            st.lists(st.integers(1, 2), min_size=axes, max_size=axes),
            st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes),
            st.lists(st.integers(5, 8), min_size=axes, max_size=axes),
        )
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_patches_times_weights_is_the_convolution(geometry, groups, auto_pad) -> None:  # type: ignore[no-untyped-def]
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    kernel, strides, dilations, pads, sizes = geometry
    if auto_pad != "NOTSET":
        dilations = [1] * len(kernel)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 4, *sizes)).astype(np.float32)
    w = rng.normal(size=(8, 4 // groups, *kernel)).astype(np.float32)
    window = Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), groups=groups, auto_pad=auto_pad)
    padding = window.padding(sizes)
    explicit = [begin for begin, _ in padding] + [end for _, end in padding]
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "group": groups, "pads": explicit}
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "w", "y")]
    model = helper.make_model(helper.make_graph([node], "g", values[:2], values[2:]))
    expected = ReferenceEvaluator(model).run(None, {"x": x, "w": w})[0]
    assert expected.shape[2:] == window.outputs(sizes)
    rows = patches(x, window)
    found = np.einsum("grk,gok->gro", rows, w.reshape(groups, 8 // groups, -1))
    np.testing.assert_allclose(found, pixels(expected, groups), rtol=1e-4, atol=1e-4)
    chosen = positions(0, 2, int(np.prod(window.outputs(sizes))), 3)
    np.testing.assert_allclose(
        np.einsum("grk,gok->gro", patches(x, window, chosen), w.reshape(groups, 8 // groups, -1)),
        pixels(expected, groups, chosen),
        rtol=1e-4,
        atol=1e-4,
    )


def test_positions_depend_on_the_sample_not_on_the_batch() -> None:
    whole = positions(0, 10, 49, 8)
    parts = np.concatenate([positions(0, 3, 49, 8), positions(3, 7, 49, 8)])
    np.testing.assert_array_equal(whole, parts)
    assert (np.diff(whole) > 0).all()
    assert len({tuple(row) for row in whole}) > 1
