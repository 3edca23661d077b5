"""Whole networks in the twin beside onnxruntime: the zoo that pruning is tested on, and decoders in all their forms."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from engine.train.twin.module import Twin
from tests.engine.graph.zoo import ZOO, feed
from tests.engine.small_decoders import FORMS, SHAPE, small_decoder, texts

# Where activations are rounded, a sum in another order falls to the other side of a half now and then.
TOLERANCE = {"quantized": 1e-3}


def outputs_of(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


def assert_alike(model, feeds, tolerance=1e-5):
    """The same outputs, and a finite slope for every weight."""
    twin = Twin.of(ir.from_proto(model))
    assert not twin.unsupported()
    found = twin.run(twin.feed(feeds))
    for name, expected in outputs_of(model, feeds).items():
        result = found[name].detach().numpy()
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * (np.abs(expected).max() + 1e-9))
    sum(result.square().mean() for result in found.values() if result.requires_grad).backward()
    assert twin.parameters
    for name, parameter in twin.parameters.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name):
    model = ZOO[name]()
    assert_alike(model, feed(model), TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("form", FORMS)
def test_decoders_with_and_without_a_past(form, past):
    model = small_decoder(form)
    tokens = texts(count=2, length=7)
    random = np.random.default_rng(3)
    feeds = {"input_ids": tokens, "attention_mask": np.ones((2, past + 7), np.int64)}
    if form != "genai":
        feeds["position_ids"] = np.tile(np.arange(past, past + 7), (2, 1))
    elif past:
        # GroupQueryAttention takes several tokens beside a past for one sample alone.
        feeds = {"input_ids": tokens[:, :1], "attention_mask": np.ones((2, past + 1), np.int64)}
    for layer in range(SHAPE.layers):
        for kind in ("key", "value"):
            size = (2, SHAPE.kv_heads, past, SHAPE.head_size)
            feeds[f"past_key_values.{layer}.{kind}"] = random.standard_normal(size).astype(np.float32)
    assert_alike(model, feeds)


def test_a_decoder_whose_samples_end_in_padding():
    model = small_decoder("genai", packed=False)
    mask = np.ones((2, 7), np.int64)
    mask[1, 4:] = 0
    feeds = {"input_ids": texts(count=2, length=7), "attention_mask": mask}
    for layer in range(SHAPE.layers):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{layer}.{kind}"] = np.zeros((2, SHAPE.kv_heads, 0, SHAPE.head_size), np.float32)
    twin = Twin.of(ir.from_proto(model))
    found = twin.run(twin.feed(feeds), ["logits"])["logits"].detach().numpy()
    expected = outputs_of(model, feeds)["logits"]
    # What stands at padding is nobody's concern.
    seen = mask.astype(bool)
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
