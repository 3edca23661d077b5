"""What a dataset may leave out: states and caches, as they are before the first step."""

import numpy as np
import pytest

from engine import Inspection, check_fit
from engine.data.dataset import Dataset
from engine.data.initial_state import initial_states
from engine.errors import DatasetInvalidError
from engine.inspection import DatasetInspection, TensorInfo
from engine.spec import Compress

SPEC = Compress.model_validate({"recipe": {"passes": [{"type": "simplify"}]}})


def tensor(name, shape, dtype="float32"):
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def network(inputs, outputs):
    return Inspection(
        inputs=inputs, outputs=outputs, opset={"": 18}, ir_version=10, producer="", parameters=1, size_bytes=1, nodes=1,
        ops={}, quantized="none", float_type="float32", external_data=False,
    )  # fmt: skip


def data(**arrays):
    return DatasetInspection(
        arrays=[{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in arrays.items()],
        samples=20, labelled=0, unlabelled=20, metric=None,
    )  # fmt: skip


IDS = tensor("input_ids", ("batch", "sequence"), "int64")
PAST = tensor("past_key_values.0.key", ("batch", 4, "past_sequence_length", 16))
LOGITS = tensor("logits", ("batch", "sequence", 100))
PRESENT = tensor("present.0.key", ("batch", 4, "total", 16))


@pytest.mark.parametrize(
    ("state", "outputs", "shape"),
    [
        (PAST, (LOGITS, PRESENT), (4, 0, 16)),
        (tensor("past.1.value", (None, 4, None, 16)), (LOGITS,), (4, 0, 16)),
        (tensor("past_key_values.0.key", ("batch", 4, 32, 16)), (LOGITS, PRESENT), (4, 32, 16)),
        (tensor("past", (2, "batch", 4, "past_len", 16)), (LOGITS,), (2, 4, 0, 16)),
        (tensor("state", (2, "batch", 64)), (tensor("stateN", (2, "batch", 64)),), (2, 64)),
        (tensor("h0", (1, 1, 64)), (tensor("hn", (1, 1, 64)),), (1, 64)),
        (tensor("use_cache_branch", (1,), "bool"), (LOGITS,), ()),
        (tensor("past", ("batch", "heads", "length", 16)), (LOGITS,), None),
    ],
)
def test_states_are_told_from_names_types_and_shapes(state, outputs, shape):
    (found,) = initial_states((IDS, state), {"input_ids"}, outputs).values()
    assert (None if found is None else found.shape) == shape


@pytest.mark.parametrize(
    "other",
    [
        tensor("attention_mask", ("batch", "total"), "int64"),
        tensor("image", ("batch", 3, 8, 8)),
        # No output has its name.
        tensor("memory", ("batch", 8, 8)),
    ],
)
def test_other_inputs_need_their_arrays(other):
    assert initial_states((IDS, other), {"input_ids"}, (LOGITS,)) == {}
    with pytest.raises(DatasetInvalidError, match=f"missing: {other.name}"):
        check_fit(network((IDS, other), (LOGITS,)), data(input_ids=("int64", (20, 7))), SPEC)


def test_it_is_said_what_is_fed():
    stacked = tensor("past", (2, "batch", 4, "past_len", 16))
    said = check_fit(network((IDS, stacked), (LOGITS,)), data(input_ids=("int64", (20, 7))), SPEC)
    assert "The dataset has no array for past: as before the first step, empty is fed" in " ".join(said)
    unknown = tensor("past", ("batch", "heads", "length", 16))
    with pytest.raises(DatasetInvalidError, match="no array for the input `past`") as refused:
        check_fit(network((IDS, unknown), (LOGITS,)), data(input_ids=("int64", (20, 7))), SPEC)
    assert "Add an array `past`" in refused.value.hint


def test_states_are_fed_with_each_batch(tmp_path):
    ids = np.arange(35).reshape(5, 7)
    inputs = (IDS, PAST, tensor("state", ("batch", 8)))
    completed = Dataset({"input_ids": ids}, None).completed(inputs)
    for samples in (completed.samples(inputs), completed.only(np.array([1, 2, 4]), inputs, tmp_path).samples(inputs)):
        feed = next(samples.batches(2))
        assert feed["past_key_values.0.key"].shape == (2, 4, 0, 16)
        assert not feed["state"].any()
    # Where the state has its samples on another axis, they come alone.
    inputs = (IDS, tensor("state", (2, "batch", 8)))
    feed = next(Dataset({"input_ids": ids}, None).completed(inputs).samples(inputs).batches(4))
    assert feed["input_ids"].shape == (1, 7)
    assert feed["state"].shape == (2, 1, 8)


# Samples that were filled up


FRAMES = tensor("frames", ("batch", "time", 3))


def test_samples_are_cut_to_their_lengths(tmp_path):
    frames = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
    label = np.zeros((4, 5), np.int64)
    counts = np.array([5, 2, 2, 1])
    for name in ("frames_length", "lengths"):
        dataset = Dataset({"frames": frames, name: counts}, label).completed((FRAMES,))
        feeds = list(dataset.samples((FRAMES,)).batches(4))
        assert [feed["frames"].shape for feed in feeds] == [(1, 5, 3), (2, 2, 3), (1, 1, 3)]
        assert np.array_equal(feeds[1]["frames"], frames[1:3, :2])
        assert dataset.labels().tolist() == [[0] * 5, [0, 0, -1, -1, -1], [0, 0, -1, -1, -1], [0, -1, -1, -1, -1]]
        copied = dataset.only(np.array([0, 3]), (FRAMES,), tmp_path).samples((FRAMES,))
        assert [feed["frames"].shape for feed in copied.batches(4)] == [(1, 5, 3), (1, 1, 3)]


def test_lengths_that_are_none_are_refused():
    net = network((FRAMES,), (LOGITS,))

    def fitting(shape, low, high, dtype="int64"):
        arrays = [
            {"name": "frames", "dtype": "float32", "shape": (20, 5, 3)},
            {"name": "length", "dtype": dtype, "shape": shape, "low": low, "high": high},
        ]
        return check_fit(net, data().model_copy(update={"arrays": DatasetInspection.model_validate(
            {**data().model_dump(), "arrays": arrays}).arrays}), SPEC)  # fmt: skip

    assert any("no labels" in text for text in fitting((20,), 1, 5))
    for shape, low, high, dtype, message in (
        ((20,), 0, 5, "int64", "goes from 0 to 5; `frames` has 1 to 5 positions"),
        ((20,), 1, 6, "int64", "goes from 1 to 6"),
        ((20, 2), 1, 5, "int64", "not one whole number per sample"),
        ((20,), 1, 5, "float32", "not one whole number per sample"),
    ):
        with pytest.raises(DatasetInvalidError, match=message):
            fitting(shape, low, high, dtype)


def test_an_array_that_the_network_takes_itself_cuts_nothing():
    lengths = tensor("length", ("batch",), "int64")
    dataset = Dataset({"frames": np.zeros((4, 5, 3), np.float32), "length": np.array([5, 2, 2, 1])}, None)
    feed = next(dataset.completed((FRAMES, lengths)).samples((FRAMES, lengths)).batches(4))
    assert feed["frames"].shape == (4, 5, 3)
    assert feed["length"].tolist() == [5, 2, 2, 1]


@pytest.mark.parametrize(
    ("shape", "wanted", "hint"),
    [
        ((20, 8, 9, 3), ("n", 3, 8, 9), "transpose(0, 3, 1, 2)"),
        ((20, 3, 8, 9), ("n", 8, 9, 3), "transpose(0, 2, 3, 1)"),
    ],
)
def test_images_with_the_channels_at_the_other_end(shape, wanted, hint):
    with pytest.raises(DatasetInvalidError, match=r"with the channels (first|last) as it seems") as refused:
        check_fit(network((tensor("x", wanted),), (LOGITS,)), data(x=("float32", shape)), SPEC)
    assert hint in refused.value.hint
