"""One streaming run: the same ranges however samples are batched, sentinels left out, every kind of tensor seen."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.calibrate import MinMax, Range, observe
from engine.calibrate.cache import StoredStatistics, digest_of
from engine.contract import Observe
from engine.target import Target


def _load(serialized):
    return ir.from_proto(onnx.load_model_from_string(serialized))


@pytest.fixture
def ranges(residual_cnn, images, feeds_of, tmp_path):
    model = _load(residual_cnn())
    tensors = ["image", "stem_out", "add1_out", "pool_out", "scores"]
    samples = feeds_of({"image": images(133)})

    def make(batch=None):
        requests = [Observe(name) for name in tensors]
        found = observe(model, requests, samples, Target(), scratch=tmp_path, batch=batch)
        return {request.tensor: result for request, result in found.items()}

    return make


def test_ranges_do_not_depend_on_the_batch_size(ranges):
    one = ranges(1)
    for batch in (7, 64, None):
        for name, found in ranges(batch).items():
            assert found.low == pytest.approx(one[name].low, rel=1e-5, abs=1e-5)
            assert found.high == pytest.approx(one[name].high, rel=1e-5, abs=1e-5)


def test_inputs_and_outputs_are_observed_too(ranges, images):
    found = ranges()
    assert (found["image"].low, found["image"].high) == (images(133).min(), images(133).max())
    assert found["scores"].low < found["scores"].high


def test_a_fixed_batch_size_wins_and_its_ragged_end_is_left_out(residual_cnn, images, feeds_of, tmp_path):
    model = _load(residual_cnn(shape=(4, 3, 12, 12), out_shape=(4, 5)))
    pictures = images(10)
    pictures[8:] = 255  # in the ragged end
    found = observe(model, [Observe("image")], feeds_of({"image": pictures}), Target(), scratch=tmp_path)
    assert found[Observe("image")].high == pictures[:8].max()


def test_nothing_is_left_in_the_scratch_folder(ranges, tmp_path):
    ranges()
    assert not list(tmp_path.iterdir())


def test_sentinels_and_numbers_that_are_none_do_not_poison_a_range():
    found = MinMax()
    found.update(np.array([1.0, np.float32(-3.4e38), np.inf, np.nan, 5.0], np.float32))
    found.update(np.array([], np.float32))
    found.update(np.full(3, -np.inf, np.float32))
    assert found.result() == Range(1.0, 5.0)


def test_a_range_never_widens_towards_zero_that_was_not_seen():
    found = MinMax()
    for batch in (np.array([1.0, 1.0]), np.array([100.0])):
        found.update(batch)
    assert found.result() == Range(1.0, 100.0)
    assert MinMax().result() == Range(0.0, 0.0)


def test_a_second_attempt_reads_what_the_first_one_found(residual_cnn, images, feeds_of, tmp_path, monkeypatch):
    from engine.runtime import sessions

    model, samples = _load(residual_cnn()), feeds_of({"image": images(9)})
    kinds = ("min_max", "histogram", "channel_range", "channel_mean", "moving_average")
    requests = [Observe("stem_out", kind) for kind in kinds] + [Observe("scores", "second_moment")]
    stored = StoredStatistics(tmp_path / "checkpoint", digest_of(samples))
    stored.folder.mkdir()
    first = observe(model, requests, samples, Target(), scratch=tmp_path, stored=stored)
    monkeypatch.setattr(sessions, "session", None)  # nothing may be run
    # As the worker hands them on: in another folder.
    kept = StoredStatistics(stored.folder.rename(tmp_path / "kept"), digest_of(feeds_of({"image": images(9)})))
    again = observe(model, requests, samples, Target(), scratch=tmp_path, stored=kept)
    for request in requests:
        for name, value in vars(first[request]).items():
            np.testing.assert_array_equal(getattr(again[request], name), value)
    others = feeds_of({"image": images(9, seed=2)})
    for changed in (
        (model, requests, others, Target(), StoredStatistics(kept.folder, digest_of(others))),
        (model, requests[1:], samples, Target(), kept),
        (model, requests, samples, Target(threads=2), kept),
        (_load(residual_cnn(opset=19)), requests, samples, Target(), kept),
    ):
        *arguments, place = changed
        with pytest.raises(TypeError):
            observe(*arguments, scratch=tmp_path, stored=place)
