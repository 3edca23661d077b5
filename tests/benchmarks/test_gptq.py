"""The networks whose quantization is timed are valid, and as the report says."""

import numpy as np
import onnx
import pytest

from benchmarks.quantization import gptq
from engine.runtime.sessions import session
from engine.target import Target


@pytest.mark.parametrize("decoder", [False, True])
def test_networks_run_and_a_decoder_does_not_look_ahead(decoder):
    model = gptq.network(gptq.Shape("a trial", 1, 32, 2, 64, decoder))
    onnx.checker.check_model(model)
    running = session(model.SerializeToString(), Target())
    ids = np.random.default_rng(0).integers(0, 100, (1, 128))
    other = ids.copy()
    other[0, -1] += 1
    before, after = (running.run({"input_ids": each})["hidden"] for each in (ids, other))
    assert np.isfinite(before).all()
    assert np.array_equal(before[:, :-1], after[:, :-1]) == decoder


def test_the_encoder_has_the_layers_of_one_of_110_m_parameters():
    shape = gptq.ENCODER
    products = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.inner)
    assert 84e6 < products < 86e6
