"""A decoder of two layers in the forms that exist, with random weights: a few kilobytes, no training."""

import numpy as np
import onnx

from benchmarks.networks.decoder_graph import Form, decoder
from benchmarks.networks.decoder_shape import DecoderShape

SHAPE = DecoderShape(
    vocabulary=320, width=64, layers=2, heads=4, kv_heads=2, head_size=16, hidden=96, context=128, rotary_base=1000.0
)
FORMS: tuple[Form, ...] = ("genai", "opset23", "opset24")


def weights(seed=0, shape=SHAPE):
    """Weights that let what is likeliest stand out, as in a network that has learnt something."""
    random = np.random.default_rng(seed)
    found = {}
    for name, size in shape.shapes().items():
        scale = 3.0 if name == "head" else 1.0
        found[name] = (
            np.ones(size, np.float32)
            if len(size) == 1
            else (random.standard_normal(size) * scale / size[-1] ** 0.5).astype(np.float32)
        )
    return found


def small_decoder(form: Form = "genai", *, packed=True, seed=0, shape=SHAPE) -> onnx.ModelProto:
    """The network in one of its forms."""
    return decoder(weights(seed, shape), shape, form, packed=packed)


def texts(count=12, length=24, seed=0, vocabulary=SHAPE.vocabulary):
    """Token numbers [count, length]."""
    return np.random.default_rng(seed).integers(1, vocabulary, (count, length))
