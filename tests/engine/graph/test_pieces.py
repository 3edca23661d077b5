"""Networks too large to load: what comes out in pieces is what comes out of the whole."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import ModelUnsupportedError
from engine.graph import io
from engine.graph.pieces import Pieces
from engine.runtime import sessions
from engine.target import Target


@pytest.fixture
def stored(residual_cnn, tmp_path):
    """A network whose weights lie beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load_from_string(residual_cnn()), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    return path


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("piece_bytes", [1, 4096, 1 << 30])
def test_pieces_give_what_the_whole_gives(stored, images, optimise, piece_bytes):
    pieces = Pieces(stored, Target(), optimise=optimise, piece_bytes=piece_bytes)
    whole = sessions.session(stored, Target(), optimise=optimise)
    assert pieces.inputs == whole.inputs
    assert [port.name for port in pieces.outputs] == [port.name for port in whole.outputs]
    feed = {"image": images(3).astype(np.float32)}
    expected, found = whole.run(feed), pieces.run(feed)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)


def test_one_piece_at_a_time_is_opened(stored, images, monkeypatch):
    opened = []
    real = sessions.session
    monkeypatch.setattr(sessions, "session", lambda model, *a, **k: opened.append(len(model)) or real(model, *a, **k))
    Pieces(stored, Target(), piece_bytes=1).run({"image": images(1)})
    assert len(opened) >= 5
    assert max(opened) < sum(opened) / 2


def test_an_output_that_nothing_computes_is_refused(tmp_path):
    graph = onnx.helper.make_graph(
        [],
        "same",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "same.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ModelUnsupportedError, match="cannot run in pieces"):
        Pieces(path, Target())
    assert isinstance(io.load(path), ir.Model)
