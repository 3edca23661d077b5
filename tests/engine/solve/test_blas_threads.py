"""Matrices are multiplied by one thread where that is asked for, and by as many as before afterwards."""

import numpy as np
import pytest

from engine.solve.blas_threads import _libraries, one_blas_thread


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
