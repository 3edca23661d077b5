"""What a decoder takes beside its tokens is filled in: the mask, the positions, and a cache that is empty."""

import io
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest

from engine import check_arrays, inspect_dataset, inspect_model
from engine.data.completion import completed
from engine.data.dataset import Dataset, random_samples
from engine.data.decoder_inputs import decodes, follow, past_axis
from engine.errors import DatasetInvalidError
from engine.inspection import TensorInfo
from tests.engine.small_decoders import FORMS, SHAPE, small_decoder, texts


def _tensor(name, dtype, *shape):
    return TensorInfo(name=name, dtype=dtype, shape=shape)


TOKENS = _tensor("input_ids", "int64", "batch", "sequence")
MASK = _tensor("attention_mask", "int64", "batch", "total")
POSITIONS = _tensor("position_ids", "int64", "batch", "sequence")
PAST = _tensor("past_key_values.0.key", "float32", "batch", 2, "past_sequence_length", 16)


@pytest.fixture(params=FORMS)
def decoder(request, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(small_decoder(request.param), path)
    return path


def _dataset(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def _logits(path, feed):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], dict(feed))[0]


def test_tokens_alone_are_a_dataset_for_a_decoder(decoder, tmp_path):
    tokens = texts(6)
    path = _dataset(tmp_path, input_ids=tokens)
    inspection = inspect_model(decoder)
    check_arrays(inspection, inspect_dataset(path))
    samples = Dataset.open(path, tmp_path).samples(inspection.inputs)
    first, second = samples.batches(3)
    whole = _logits(decoder, first)
    assert whole.shape == (3, 24, SHAPE.vocabulary)
    # What comes later changes nothing before it, so the cache and the positions are those of the first token.
    short = {name: array[:, :5] if array.ndim == 2 else array for name, array in first.items()}
    np.testing.assert_allclose(_logits(decoder, short), whole[:, :5], rtol=1e-3, atol=1e-4)
    assert _logits(decoder, second).shape == whole.shape


def test_texts_of_different_lengths_are_completed_each_for_itself(decoder, tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number, length in enumerate((4, 4, 7)):
            one = io.BytesIO()
            np.savez(one, input_ids=texts(1, length)[0])
            archive.writestr(f"{number}.npz", one.getvalue())
    inspection = inspect_model(decoder)
    check_arrays(inspection, inspect_dataset(path))
    feeds = list(Dataset.open(path, tmp_path).samples(inspection.inputs).batches(8))
    assert [feed["attention_mask"].shape for feed in feeds] == [(2, 4), (1, 7)]
    assert [_logits(decoder, feed).shape[:2] for feed in feeds] == [(2, 4), (1, 7)]


def test_what_is_there_is_respected():
    tokens = texts(2, 5)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = completed({"input_ids": tokens, "attention_mask": mask}, (TOKENS, MASK, POSITIONS, PAST))
    assert found["attention_mask"] is mask
    assert found["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    cache = np.ones((2, 2, 3, 16), np.float32)
    found = completed({"input_ids": tokens, PAST.name: cache}, (TOKENS, MASK, POSITIONS, PAST))
    assert found["attention_mask"].shape == (2, 8)
    assert found["position_ids"][0].tolist() == [3, 4, 5, 6, 7]


def test_an_encoder_gets_nothing_that_it_was_not_given(tmp_path):
    assert not decodes((TOKENS, MASK))
    assert not follow((TOKENS, MASK), {"input_ids"})
    inspection = inspect_model(_encoder(tmp_path))
    path = _dataset(tmp_path, input_ids=texts(3))
    with pytest.raises(DatasetInvalidError, match="missing: attention_mask"):
        check_arrays(inspection, inspect_dataset(path))


def _encoder(tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["input_ids", "attention_mask"], ["y"])],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", "t"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "e.onnx")
    return tmp_path / "e.onnx"


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        (("batch", 2, "past_sequence_length", 16), 2),
        (("batch", 2, None, 16), 2),
        (("batch", "past_sequence_length", 2, 16), 1),
        (("batch", 2, "past_sequence_length", "kv_cache_dim"), 2),
        (("batch", 2, 512, 16), None),
    ],
)
def test_the_axis_of_a_cache_that_grows(shape, axis):
    assert past_axis(_tensor("past_key_values.3.value", "float32", *shape)) == axis


def test_sizes_of_heads_that_the_inputs_leave_open_are_read_off_the_graph(decoder, tmp_path):
    model = onnx.load(decoder)
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    onnx.save(model, tmp_path / "open.onnx")
    inspection = inspect_model(tmp_path / "open.onnx")
    shapes = {tensor.shape for tensor in inspection.inputs if tensor.name.startswith("past")}
    assert shapes == {("batch_size", SHAPE.kv_heads, "past_sequence_length", SHAPE.head_size)}
    check_arrays(inspection, inspect_dataset(_dataset(tmp_path, input_ids=texts(2))))


def test_without_data_a_decoder_runs_on_made_up_texts(decoder):
    feed = next(random_samples(inspect_model(decoder).inputs, 4).batches(4))
    assert _logits(decoder, feed).shape == (4, 16, SHAPE.vocabulary)


def test_texts_are_their_own_labels_where_perplexity_is_asked_for(tmp_path):
    tokens = texts(3, 5)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    path = _dataset(tmp_path, input_ids=tokens, attention_mask=mask)
    found = inspect_dataset(path, metric="nats_per_token")
    assert (found.metric, found.labelled, found.label.shape) == ("perplexity", 3, (3, 5))
    label = Dataset.open(path, tmp_path, metric=found.metric).labels()
    assert label[0].tolist() == [*tokens[0, 1:], -1]
    assert label[1].tolist() == [-1, -1, tokens[1, 3], tokens[1, 4], -1]
    assert label[2].tolist() == [tokens[2, 1], tokens[2, 2], -1, -1, -1]
    # Without it they are only texts, and what is labelled keeps its labels.
    assert inspect_dataset(path).label is None
    own = _dataset(tmp_path, input_ids=tokens, label=np.full((3, 5), 7))
    assert (Dataset.open(own, tmp_path, metric="perplexity").labels() == 7).all()
