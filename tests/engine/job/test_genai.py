"""The real onnxruntime-genai loads what we make of a decoder, and writes what onnxruntime writes with it."""

import json

import numpy as np
import pytest

from benchmarks.networks import genai_folder
from engine import Compress, run
from engine.report.run_facts import Memory
from engine.runtime import sessions
from engine.target import Target
from tests.engine.small_decoders import SHAPE, small_decoder, texts

genai_write = pytest.importorskip("benchmarks.decoder.genai_write", reason="onnxruntime-genai is not installed")
WRITTEN = 12


def _greedy(path, prompt):
    """The likeliest tokens, with a cache that is fed back."""
    session, tokens = sessions.session(path, Target()), list(prompt)
    empty = np.zeros((1, SHAPE.kv_heads, 0, SHAPE.head_size), np.float32)
    cache = {f"past_key_values.{n}.{kind}": empty for n in range(SHAPE.layers) for kind in ("key", "value")}
    feed = np.array([prompt])
    for _ in range(WRITTEN):
        given = {"input_ids": feed, "attention_mask": np.ones((1, len(tokens)), np.int64), **cache}
        found = session.run(given)
        tokens.append(int(found["logits"][0, -1].argmax()))
        feed = np.array([tokens[-1:]])
        cache = {name: found[name.replace("past_key_values", "present")] for name in cache}
    return tokens[len(prompt) :]


@pytest.mark.usefixtures("short_measurements")
@pytest.mark.parametrize("packed", [True, False])
def test_genai_loads_a_quantized_decoder_and_writes_the_same(workspace, tmp_path, packed):
    folder = workspace(small_decoder(packed=packed).SerializeToString(), input_ids=texts(24))
    gates = [
        {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9},
        {"metric": "kl", "rule": "max", "value": 9.0},
    ]
    spec = Compress.model_validate(
        {"recipe": {"passes": [{"type": "quantize_weights", "head_bits": 8}]}, "gates": gates}
    )
    report = run(spec, folder, [].append, probe=lambda *_: Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1))
    assert report.steps[0].status == "applied", report.steps[0].refusal
    genai_folder.write(SHAPE, 0, folder / "out")
    assert json.loads((folder / "out" / "genai_config.json").read_text())["model"]["vocab_size"] == SHAPE.vocabulary
    model = genai_write.genai.Model(str(folder / "out"))
    for prompt in texts(4, 6, seed=9).tolist():
        written = genai_write.write(model, prompt, WRITTEN)
        # A text may end early, at the token that ends texts.
        assert written == _greedy(folder / "out" / "model.onnx", prompt)[: len(written)]
        assert written
