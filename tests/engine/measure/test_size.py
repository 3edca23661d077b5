import zlib

import numpy as np
import onnx
import pytest

from engine.errors import ModelInvalidError
from engine.measure.size import compare_size
from engine.runtime.network_files import parameters, stored_bytes


def test_counts_external_data_once(tmp_path, linear):
    weight = np.ones((64, 32))
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    inside.write_bytes(linear(weight))
    model = onnx.load(inside)
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert parameters(inside) == parameters(outside) == 64 * 32
    assert stored_bytes(inside) == inside.stat().st_size
    assert stored_bytes(outside) == outside.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert compare_size(inside, outside).original == inside.stat().st_size


def test_refuses_what_is_missing_or_elsewhere(tmp_path, linear):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear(np.ones((64, 32))))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelInvalidError, match="is missing"):
        stored_bytes(path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalidError, match="leaves the network's folder"):
        stored_bytes(path)
    path.write_text("not a network")
    with pytest.raises(ModelInvalidError, match="not an ONNX network"):
        parameters(path)


def test_the_download_is_what_deflate_makes_of_it(tmp_path, linear):
    dense, sparse = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 64))
    dense.write_bytes(linear(weight))
    sparse.write_bytes(linear(weight * (random.random(weight.shape) < 0.1)))
    size = compare_size(dense, sparse, download=True)
    assert size.original_download == len(zlib.compress(dense.read_bytes(), 6))
    assert size.compressed_download is not None
    assert size.compressed_download < 0.4 * size.original_download
    assert compare_size(dense, sparse).original_download is None
