"""Which ONNX Runtime a network takes follows from its operator sets and the version of its file, the stricter of them."""

import onnxruntime
import pytest

from engine.report.runtime_releases import first_release


@pytest.mark.parametrize(
    ("opset", "ir_version", "release"),
    [
        ({"": 13}, 7, "1.17"),
        ({"": 21}, 10, "1.19"),
        ({"": 22}, 8, "1.21"),
        ({"": 17}, 11, "1.23"),
        ({"": 17, "ai.onnx.ml": 5}, 8, "1.19"),
        ({"": 17, "com.microsoft": 1}, 8, "1.17"),
        ({"": 99}, 8, None),
    ],
)
def test_the_first_release_that_takes_all_of_it(opset, ir_version, release):
    assert first_release(opset, ir_version) == release


def test_what_the_installed_release_writes_is_known():
    """A newer onnxruntime whose operator sets are not in the table yet fails here."""
    import onnx

    written = min(onnx.defs.onnx_opset_version(), 26)
    newest = first_release({"": written}, 10)
    assert newest is not None
    assert tuple(map(int, newest.split("."))) <= tuple(map(int, onnxruntime.__version__.split(".")[:2]))
