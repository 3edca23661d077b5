"""The result as people see it: every number beside the original's, every refusal with its reason."""

from io import StringIO

import pytest
from rich.console import Console

from onnxpress import formatting, render_report, wording


def shown(report, width=160):
    console = Console(width=width, record=True, file=StringIO())
    render_report.show(report, console, title="net.onnx -> small.onnx")
    return console.export_text()


def line(text, start):
    return " ".join(next(one for one in text.splitlines() if start in one).split())


def flowing(text):
    return " ".join(text.split())


def test_the_numbers_stand_beside_the_original(report):
    text = shown(report)
    assert "net.onnx -> small.onnx" in text
    assert line(text, "size ") == "│ size │ 729.0 kB │ 246.0 kB │ 2.96x smaller │"
    assert line(text, "latency p50") == ("│ latency p50 │ 1.200 ms │ 0.828 ms │ 1.45x as fast (1.39 to 1.52) │")
    assert "latency p95" in text
    assert line(text, "│ top1 ") == "│ top1 │ 91.20 % │ 91.10 % │ -0.10 points (-0.40 to +0.20) │"
    assert line(text, "sqnr_db") == "│ sqnr_db │ │ 34.1 dB │ between 33.9 dB and 34.3 dB │"
    assert "1.25x less" in line(text, "peak memory")
    assert "cpu, 1 thread, batch 1 on A CPU, onnxruntime 1.32.0" in text


def test_steps_say_what_they_did_or_why_not(report):
    text = shown(report)
    assert "applied" in line(text, "simplify")
    assert "Folded 9 BatchNormalization nodes." in line(text, "simplify")
    assert "too_lossy: top1 fell by 4.7 points. Use 7-bit weights." in line(text, "quantize_static")


def test_gates_and_verdict(report):
    text = shown(report)
    assert "pass" in line(text, "top1 max_drop 0.01")
    assert "fail (warn)" in line(text, "size_bytes max_ratio 0.01")
    assert "inconclusive" in line(text, "latency_p95 max_ratio 0.01")
    assert "because of latency_p95" in text
    assert "verdict: inconclusive" in text
    assert "warning: a warning" in text


def test_a_job_without_gates_latency_or_memory(report):
    report |= {"verdict": {"outcome": "none", "gates": []}, "latency": None, "memory": None}
    text = shown(report)
    assert "verdict: none" in text
    assert "latency" not in text.replace(report["summary"], "")


def test_an_unstable_measurement_says_so(report):
    report["latency"] |= {"stable": False, "unstable_because": "3 of 4 runs were preempted"}
    assert "3 of 4 runs were preempted" in shown(report)


def test_markup_in_a_report_is_only_text(report):
    report["steps"][1]["refusal"]["reason"] = "[red]Conv[/nonsense]"
    report["summary"] = "[bold]node[0]"
    report["environment"]["cpu"] = "A [CPU]"
    text = shown(report)
    assert "[red]Conv[/nonsense]" in text
    assert "[bold]node[0]" in text
    assert "A [CPU]" in text


def test_no_text_of_a_network_steers_the_terminal(report):
    report["steps"][1]["refusal"]["reason"] = "Conv \x1b]0;title\x07 \x1b[2J \x9b1m"
    assert not set(shown(report)) & {"\x1b", "\x07", "\x9b"}


def test_it_fits_a_narrow_terminal(report):
    assert max(len(one) for one in shown(report, width=80).splitlines()) <= 80


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1024, "1.0 kB"), (246_000, "246.0 kB"), (3 << 30, "3.22 GB")]
)
def test_sizes(size, text):
    assert wording.size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-6, "2.50 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (65, "1 min 05 s"), (7300, "2 h 01 min")],
)
def test_durations(seconds, text):
    assert formatting.duration(seconds) == text


def test_how_it_did_where_it_was_chosen_stands_beside_how_it_is_judged(report):
    assert "1,000 held-out samples, 512 for calibration" in flowing(shown(report))  # of an older worker
    parts = {"calibrate": 512, "select": 300, "judge": 700, "select_is_judge": False, "reason": "because"}
    report |= {"parts": parts, "selected_quality": [{**report["quality"][0], "compressed": 0.925}]}
    text = shown(report, width=200)
    assert line(text, "│ top1 ").endswith("-0.10 points (-0.40 to +0.20); chosen at 92.50 % │")
    assert "chosen at" not in line(text, "sqnr_db")
    assert "judged on 700 samples, chosen on 300 others, 512 for calibration" in flowing(text)
    report["parts"] |= {"select_is_judge": True, "select": 700}
    assert "chosen and judged on the same 700 samples" in flowing(shown(report, width=200))


def test_other_outputs_take_one_line_each(report):
    (first, *_), interval = report["quality"], {"low": 0.9, "high": 1.0, "confidence": 0.95}
    shared = {**first, "original": None, "difference": None, "interval": interval}
    report["quality"] = [
        {**shared, "metric": "top1_agreement", "compressed": 0.995, "output": "logits"},
        {**shared, "metric": "cosine", "compressed": 0.9999, "output": "vector", "kind": "embedding"},
        {**shared, "metric": "neighbours", "compressed": 0.9, "output": "vector"},
    ]
    report["outputs"] = [
        {"name": "logits", "kind": "classes", "reason": "Softmax makes it", "ignored": False},
        {"name": "aux", "kind": None, "reason": "nobody reads it", "ignored": True},
    ]
    text = shown(report)
    assert line(text, "output vector") == "│ output vector (embedding) │ │ │ cosine 0.999900, neighbours 90.00 % │"
    assert "output logits: judged as classes, because Softmax makes it" in text
    assert "output aux: not judged, because nobody reads it" in text


def test_a_gate_on_an_output_says_so(report):
    report["verdict"]["gates"][0]["gate"] |= {"metric": "top1", "output": "logits"}
    assert "pass" in line(shown(report), "top1@logits max_drop")


def test_a_decoders_reading_and_writing_stand_apart(report):
    def rate(before, after, texts, tokens, **more):
        ratio = {"value": after / before, "interval": {"low": 0.4, "high": 0.6, "confidence": 0.95}}
        speeds = {
            f"{side}_tokens_per_s": 1000 * texts * tokens / ms
            for side, ms in (("original", before), ("compressed", after))
        }
        return {"original_ms": before, "compressed_ms": after, **speeds, "ratio": ratio, "stable": True, **more}

    report["generation"] = {
        "texts": 1,
        "prompt_tokens": 128,
        "prefill": rate(32.0, 40.0, 1, 128),
        "decode": rate(4.0, 2.0, 1, 1, clock="cpu", stable=False),
    }
    text = shown(report)
    assert (
        line(text, "first token after 128")
        == "│ first token after 128 tokens │ 32.0 ms │ 40.0 ms │ 0.80x as fast (1.67 to 2.50) │"
    )
    assert "4000 tokens/s │ 3200 tokens/s │ 0.80x as fast" in line(text, "prompt read")
    assert "250 tokens/s │ 500 tokens/s │ 2.00x as fast (1.67 to 2.50) by CPU time" in line(text, "text written")


def test_every_byte_is_in_a_row(report):
    assert "where the bytes are" not in shown(report), "older workers do not say"
    rows = [
        {"kind": "quantized", "reason": None, "tensors": 9, "bytes": 180_000},
        {"kind": "float_weights", "reason": "the recipe excludes it", "tensors": 1, "bytes": 60_000},
        {"kind": "graph", "reason": None, "tensors": 0, "bytes": 6_000},
        {"kind": "invented_later", "reason": None, "tensors": 0, "bytes": 0},
    ]
    text = shown(report | {"bytes": {"rows": rows, "total": 246_000}})
    assert line(text, "quantized values") == "│ quantized values │ 9 │ 180,000 │ 73.2 % │"
    assert "weights in float: the recipe excludes it" in text
    assert line(text, "operators, names and framing") == "│ operators, names and framing │ │ 6,000 │ 2.4 % │"
    assert line(text, "│ all ") == "│ all │ │ 246,000 │ │"
    assert "invented_later" in text


def test_the_terminal_knows_every_kind_of_byte():
    from engine.report.byte_account import BYTE_KINDS

    assert render_report.BYTE_KINDS == BYTE_KINDS
