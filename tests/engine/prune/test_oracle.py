"""How far a cut network may be from the one in which the same channels are silenced."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.prune import oracle
from engine.target import Target


def scaled(model, factor):
    """Give a network whose outputs are larger by a factor."""
    other = io.copy(model)
    for name in ("head.w", "head.b"):
        value = other.graph.initializers[name]
        value.const_value = ir.tensor((value.const_value.numpy() * np.float64(factor)).astype(np.float32), name=name)
    return other


@pytest.fixture
def model(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def samples(images, feeds_of):
    return feeds_of({"image": images(8)})


def test_kernels_of_another_width_may_round_as_lossless_steps_may(model, samples):
    # What an OCR network of 480x480 pixels differed by when 40 % of its channels were gone: it was refused above 1e-5.
    found = oracle.compare(model, scaled(model, 1 + 3e-5), samples, Target())
    assert 1e-5 < found.difference < found.tolerance
    with pytest.raises(VerificationFailedError, match="silenced channels"):
        oracle.compare(model, scaled(model, 1 + 3e-4), samples, Target())
