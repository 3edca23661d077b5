"""Reports for other programs say what the report says."""

from xml.etree import ElementTree as ET

import pytest

import engine
from engine import REPORT_FORMATS, report_files
from engine.gate import Gate
from engine.report.junit import junit
from engine.report.markdown import markdown
from engine.report.openmetrics import prometheus
from engine.report.values import GateResult, Report, Verdict

FACTS = {"sha256": "0" * 64, "size_bytes": 200, "parameters": 8, "nodes": 1, "ops": {"Gemm": 1}}
REPORT = Report.model_validate(
    {
        "summary": "Half the size.",
        "unchanged": False,
        "target": {},
        "original": FACTS,
        "compressed": FACTS,
        "steps": [],
        "size": {"original": 200, "compressed": 100},
        "quality": [],
        "latency": None,
        "memory": None,
        "verdict": {"outcome": "none"},
        "calibration_samples": 0,
        "held_out_samples": 0,
        "environment": {
            "cpu": "x", "cpu_flags": [], "cores": 1, "onnxruntime": "1", "provider": "cpu", "python": "3", "system": "s",
        },
        "seconds": 1.5,
    }
)  # fmt: skip


def gated(*results):
    gates = [
        GateResult(
            gate=Gate(metric="size_bytes", rule="max_ratio", value=0.25, level=level),
            measured=0.5,
            bound=None,
            outcome=outcome,
            reason='it is 0.5 <of> "the" original\x00',
        )
        for outcome, level in results
    ]
    return REPORT.model_copy(update={"verdict": Verdict.of(gates)})


@pytest.mark.parametrize(
    ("results", "failures", "skipped"),
    [
        ((), 0, 0),
        ((("pass", "error"),), 0, 0),
        ((("fail", "error"), ("pass", "error")), 1, 0),
        ((("fail", "warn"), ("inconclusive", "error")), 0, 2),
    ],
)
def test_junit_fails_on_what_the_verdict_fails_on(results, failures, skipped):
    report = gated(*results)
    suite = ET.fromstring(junit(report).decode())
    assert (suite.get("failures"), suite.get("skipped")) == (str(failures), str(skipped))
    assert suite.get("tests") == str(len(suite.findall("testcase"))) == str(max(1, len(results)))
    assert (failures > 0) == (report.verdict.outcome == "fail")
    for said in suite.iter("failure"):
        assert said.get("message") == 'fail: it is 0.5 <of> "the" original'


def test_prometheus_has_verdict_and_sizes():
    text = prometheus(gated(("fail", "error")))
    assert 'onnxpress_report_verdict{outcome="fail"} 1\n' in text
    assert 'onnxpress_report_verdict{outcome="pass"} 0\n' in text
    assert 'onnxpress_report_size_bytes{network="compressed"} 100\n' in text
    for line in text.splitlines():
        assert line.startswith(
            ("# TYPE onnxpress_report_", "# HELP onnxpress_report_", "# UNIT onnxpress_report_", "# EOF")
        ) or (float(line.rpartition(" ")[2]) >= 0)
    assert text.endswith("\n# EOF\n")


def test_a_report_from_a_gpu_names_it_and_says_nothing_of_the_processors_time():
    one = {"value": 0.5, "interval": {"low": 0.5, "high": 0.5}}
    times = {f"{name}_ms": 1.0 for name in ("mean", "p50", "p90", "p95", "p99")}
    latency = {
        "original": {**times, "samples": 50, "dropped": 0}, "compressed": {**times, "samples": 50, "dropped": 0},
        "ratios": dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), one), "cpu_ratio": None,
        "noise_floor": {"low": 1, "high": 1}, "stable": True, "nodes_by_provider": {"CUDAExecutionProvider": 3},
    }  # fmt: skip
    memory = {"peak_rss_bytes": 1, "load_ms": 1, "first_run_ms": 1, "device_peak_bytes": 4_000_000}
    gpu = {"gpu": "NVIDIA H100", "driver": "580.1", "cuda": "13.0", "cudnn": "9.15.1", "tf32": True}
    report = Report.model_validate(
        {
            **REPORT.model_dump(),
            "latency": latency,
            "memory": {"original": memory, "compressed": {**memory, "device_peak_bytes": 3_000_000}},
            "environment": {**REPORT.environment.model_dump(), **gpu},
        }
    )
    text = markdown(report)
    assert "NVIDIA H100 (driver 580.1, CUDA 13.0, cuDNN 9.15.1) beside x" in text
    assert "in TF32, as ONNX Runtime does by itself; what lossless steps change was compared without TF32" in text
    assert "| peak GPU memory | 4.0 MB | 3.0 MB | 1.33x less |" in text
    assert "CPU time" not in text
    assert 'onnxpress_report_peak_device_memory_bytes{network="compressed"} 3000000' in prometheus(report)


def test_what_fits_a_pull_request_stands_on_top():
    text = markdown(gated(("fail", "error")))
    top, *folded = text.split("<details>")
    assert top.startswith("# Compression report: FAIL")
    assert "| size | " in top
    assert "## Gates" in top
    assert text.count("<details>") == text.count("</details>") == len(folded) > 0
    assert "operators" not in top
    assert "<summary>All that was measured</summary>" in folded[0]


def test_every_format_is_written():
    assert set(report_files(REPORT)) == {f"report.{form}" for form in REPORT_FORMATS}


def test_what_a_newer_version_says_besides_is_left_out():
    told = REPORT.model_dump(mode="json")
    newer = {**told, "carbon": {"grams": 1}, "environment": {**told["environment"], "moon": "full"}}
    assert engine.read_report(newer) == REPORT


def test_every_output_is_in_the_files_for_people_and_for_dashboards():
    def quality(metric, value, output, kind):
        interval = {"low": value, "high": value}
        return {"metric": metric, "original": None, "compressed": value, "difference": None, "interval": interval,
                "standard_error": 0.0, "samples": 9, "output": output, "kind": kind}  # fmt: skip

    def output(name, kind, **more):
        return {
            "name": name,
            "kind": kind,
            "reason": "so it is",
            "weight": 1.0,
            "ignored": False,
            "main": False,
            **more,
        }

    told = {
        **REPORT.model_dump(mode="json"),
        "quality": [
            quality("top1_agreement", 0.99, "logits", "classes"),
            quality("sqnr_db", 31.0, "logits", "classes"),
            quality("sqnr_db", 22.0, 'the "state"', "state"),
            quality("cosine", 0.9999, 'the "state"', "state"),
        ],
        "outputs": [
            output("logits", "classes", main=True),
            output('the "state"', "state", weight=0.1),
            output("map", None),
        ],
    }
    files = report_files(engine.read_report(told))
    text = files["report.md"].decode()
    assert "| top1_agreement |  | 99.00 % |" in text
    assert '| output `the "state"` (state) |  | sqnr_db 22.0 dB, cosine 0.999900 |' in text
    assert "| **`logits`** | classes | 1 | so it is |" in text
    assert "| `map` | not judged |  | so it is |" in text
    assert 'metric="sqnr_db",output="the \\"state\\""} 22' in files["report.prom"].decode()
