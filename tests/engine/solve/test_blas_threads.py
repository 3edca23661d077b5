"""Matrices are multiplied by one thread where that is asked for, and by as many as before afterwards."""

import threading

import numpy as np
import pytest

from engine.solve.blas_threads import _libraries, one_blas_thread, side_by_side


def counts():
    return [library.get() for library in _libraries()]


def test_one_thread_inside_and_as_many_as_before_behind():
    if not any("openblas" in str(part["name"]) for part in np.show_config(mode="dicts")["Build Dependencies"].values()):
        pytest.skip("NumPy was built with another library")
    before = counts()
    assert before
    try:
        for library in _libraries():
            library.set(2)
        with one_blas_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {2}
    finally:
        for library, count in zip(_libraries(), before, strict=True):
            library.set(count)


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_side_by_side_come_back_in_order(threads):
    both = threading.Barrier(threads, timeout=20)

    def work(part):
        # Only ever passed where as many parts are worked on at a time as there are threads.
        both.wait()
        return part, set(counts()) <= {1}

    before = counts()
    assert side_by_side(work, range(4), threads=threads) == [(part, True) for part in range(4)]
    assert counts() == before


def test_the_error_of_a_part_is_raised_and_threads_are_as_before():
    before = counts()
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 // part, [1, 0, 1], threads=2)
    assert counts() == before
