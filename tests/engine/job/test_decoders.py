"""Jobs on decoders: tokens alone feed them, the cache is judged as a state, and reading and writing are measured apart."""

import numpy as np
import onnx
import pytest

from engine import Compress, run
from engine.gate import Gate
from engine.job import workbench
from engine.measure.gates import Costs, judge
from engine.report.counted_time import counted
from engine.report.files import report_files
from engine.report.run_facts import Memory
from tests.engine.small_decoders import SHAPE, small_decoder, texts

RECIPE = [{"type": "quantize_weights", "head_bits": 8, "operators": ["MatMul"]}]
GATES = [
    {"metric": "size_bytes", "rule": "max_ratio", "value": 0.9},
    {"metric": "kl", "rule": "max", "value": 5.0},
]


pytestmark = pytest.mark.usefixtures("short_measurements")


def _run(folder, gates=GATES):
    spec = Compress.model_validate({"recipe": {"passes": RECIPE}, "gates": gates})
    probed = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
    return run(spec, folder, [].append, probe=lambda *_: probed)


@pytest.mark.parametrize("form", ["genai", "opset23"])
def test_a_decoder_is_quantized_from_tokens_alone(form, workspace):
    model = small_decoder(form)
    report = _run(workspace(model.SerializeToString(), input_ids=texts(24)))
    assert report.steps[0].status == "applied", report.steps[0].refusal
    kinds = {each.name: each.kind for each in report.outputs}
    assert kinds.pop("logits") == "tokens"
    assert set(kinds.values()) == {"state"}
    assert {each.metric for each in report.quality if each.output == "logits"} >= {"token_agreement", "kl"}
    speed = report.generation
    assert (speed.texts, speed.prompt_tokens) == (1, 24)
    assert speed.prefill.original_tokens_per_s == pytest.approx(24_000 / speed.prefill.original_ms, rel=0.01)
    assert speed.decode.compressed_tokens_per_s == pytest.approx(1000 / speed.decode.compressed_ms, rel=0.01)
    gate = Gate(metric="latency_decode", rule="max_ratio", value=1e6)
    # The gate is on the runs that write; those that read are others.
    assert judge(gate, (), Costs(decode=report.latency)).measured == counted(report.latency).ratio.value
    assert judge(gate, (), Costs(latency=report.latency)).outcome == "inconclusive"
    assert "writes tokens" in report.summary
    written = {name: content.decode() for name, content in report_files(report).items()}
    assert "first token after 24 tokens" in written["report.md"]
    assert 'tokens_per_second{load="decode",network="compressed"}' in written["report.prom"]


def test_candidates_race_in_writing_which_is_where_a_decoder_spends_its_time(workspace, monkeypatch):
    raced = []

    def race(original, candidates, feeds, *rest, **options):
        raced.extend(feed["input_ids"].shape for feed in feeds)
        return compare_many(original, candidates, feeds, *rest, **options)

    compare_many = workbench.compare_many
    monkeypatch.setattr(workbench, "compare_many", race)
    monkeypatch.setattr(workbench, "_RACE_SECONDS", 0.1)
    _run(workspace(small_decoder().SerializeToString(), input_ids=texts(24)))
    assert raced
    assert set(raced) == {(1, 1)}


def test_next_tokens_as_labels_give_perplexity_beside_the_original(workspace):
    tokens = texts(24, 25)
    folder = workspace(
        small_decoder("opset24").SerializeToString(), metric="perplexity", input_ids=tokens[:, :-1], label=tokens[:, 1:]
    )
    gates = [*GATES, *({"metric": name, "rule": "max_drop", "value": 1e9} for name in ("perplexity", "nats_per_token"))]
    report = _run(folder, gates)
    first, second = report.quality[:2]
    assert (first.metric, second.metric) == ("perplexity", "nats_per_token")
    assert second.original == pytest.approx(np.log(first.original))
    assert second.difference == pytest.approx(np.log(first.compressed / first.original), abs=1e-9)
    # Texts without sense: no better than a guess among all tokens.
    assert first.original > SHAPE.vocabulary / 2
    assert np.isfinite(first.difference)
    result = onnx.load(folder / "out" / "model.onnx")
    bits = {
        node.name: next(attribute.i for attribute in node.attribute if attribute.name == "bits")
        for node in result.graph.node
        if node.op_type == "MatMulNBits"
    }
    assert bits.pop("/lm_head/MatMul") == 8
    assert set(bits.values()) == {4}
    # What a cache holds stays in float.
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in result.graph.output)
