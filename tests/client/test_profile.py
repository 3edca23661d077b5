"""`onnxpress profile` against a service that says what the test wants, and its report as people see it."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import engine
from onnxpress import Client, UsageError, gates, recipe, render_report
from onnxpress.exit_codes import ExitCode

KEY = "opk_test_secret"
JOB = {
    "id": "job_1",
    "kind": "profile",
    "status": "queued",
    "verdict": "none",
    "output_model": None,
    "steps": [
        {"index": 0, "type": "cpu", "status": "waiting"},
        {"index": 1, "type": "openvino", "status": "waiting"},
    ],
    "warnings": [],
}
MEASURING = JOB | {"status": "running", "progress": {"step": 0, "what": "latency"}}
DONE = JOB | {"status": "succeeded", "steps": [step | {"status": "measured"} for step in JOB["steps"]]}


def interval(low, high):
    return {"low": low, "high": high, "confidence": 0.95}


def measurement():
    latency = {"mean_ms": 1.0, "p50_ms": 1.0, "p90_ms": 2.0, "p95_ms": 3.0, "p99_ms": 4.0, "max_ms": 50.0}
    latency |= {"samples": 400, "dropped": 3}
    ratio = {"value": 0.5, "interval": interval(0.4, 0.625)}
    memory = {"peak_rss_bytes": 60 << 20, "load_ms": 30.0, "first_run_ms": 2.0, "warm_load_ms": 5.0}
    options = {"threads": 1, "graph_optimization": "all"}
    faster = options | {"threads": 4}
    place = {"node": "conv\x1b[2J1", "op_type": "Conv", "provider": "CPUExecutionProvider"}
    return {
        "environment": {
            "cpu": "A CPU",
            "cpu_flags": [],
            "cores": 4,
            "onnxruntime": "1.32.0",
            "provider": "cpu",
            "python": "3.11",
            "system": "Linux",
        },
        "latency": latency,
        "noise_floor": interval(0.99, 1.01),
        "stable": True,
        "comparison": {
            "original": latency,
            "compressed": latency,
            "ratios": dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), ratio),
            "cpu_ratio": ratio,
            "noise_floor": interval(0.99, 1.01),
            "stable": True,
            "nodes_by_provider": {"CPUExecutionProvider": 4},
        },
        "throughput": [
            {"concurrency": 1, "runs_per_s": 900.0, "samples_per_s": 1800.0, "p50_ms": 1.1, "p99_ms": 4.4, "runs": 900}
        ],
        "memory": memory,
        "baseline_memory": memory,
        "by_type": [
            {
                "op_type": "Conv",
                "node": None,
                "provider": "CPUExecutionProvider",
                "count": 4,
                "ms": 0.9,
                "share": 0.9,
            }
        ],
        "slowest": [],
        "placement": {
            "nodes_by_provider": {"CPUExecutionProvider": 4},
            "nodes": [place],
            "fallbacks": [place],
            "fallback_share": 0.1,
        },
        "quality": [
            {
                "metric": "cosine",
                "original": None,
                "compressed": 0.99,
                "difference": None,
                "interval": interval(0.98, 1),
                "standard_error": 0.1,
                "samples": 10,
            }
        ],
        "tuning": {
            "default": options,
            "trials": [{"options": faster, "p50_ms": 0.5, "ratio": ratio, "stable": True}],
            "chosen": faster,
            "gain": ratio,
            "reason": "A run takes 0.50 of the time with 4 intra-op threads.",
        },
    }


@pytest.fixture
def profile_report():
    """Give a report as the engine writes it: one target measured, one not."""
    gate = {"metric": "latency_p99", "rule": "max", "value": 5.0}
    refusal = {"code": "unsupported", "reason": "The target has no kernel for Erf.", "hint": "Use float32."}
    document = {
        "summary": "cpu: a run takes 1 ms.",
        "model": {"sha256": "0" * 64, "size_bytes": 200, "parameters": 8, "nodes": 1, "ops": {"Gemm": 1}},
        "baseline": None,
        "targets": [
            {"index": 0, "target": {"provider": "cpu", "threads": 2}, "measured": measurement(), "seconds": 1.0},
            {
                "index": 1,
                "target": {"provider": "openvino"},
                "measured": None,
                "refusal": refusal,
                "seconds": 1.0,
            },
        ],
        "verdict": {
            "outcome": "fail",
            "gates": [
                {
                    "gate": gate | {"provider": None},
                    "target": index,
                    "measured": measured,
                    "bound": measured,
                    "outcome": outcome,
                    "reason": "so",
                }
                for index, measured, outcome in ((0, 4.0, "pass"), (1, None, "fail"))
            ],
        },
        "samples": 10,
        "seconds": 3.0,
        "warnings": ["a warning"],
    }
    return engine.ProfileReport.model_validate(document).model_dump(mode="json")


@pytest.fixture
def service_of(scripted, profile_report, tmp_path):
    """Give a function that scripts a whole job with an outcome; the files lie ready."""
    (tmp_path / "net.onnx").write_bytes(b"network")
    (tmp_path / "old.onnx").write_bytes(b"another network")
    (tmp_path / "data.npz").write_bytes(b"data")

    def script(outcome="pass"):
        stored = [{"status": 201, "json": {"id": f"mdl_{n}", "state": "ready", "sha256": "0"}} for n in (1, 2)]
        scripted.on("POST", "/models", *stored)
        scripted.on("POST", "/datasets", {"status": 201, "json": {"id": "dst_1", "state": "ready", "sha256": "0"}})
        scripted.on("POST", "/jobs", {"status": 202, "json": JOB})
        scripted.on("GET", "/jobs/job_1", {"json": JOB}, {"json": MEASURING}, {"json": DONE | {"verdict": outcome}})
        profile_report["verdict"]["outcome"] = outcome
        scripted.on("GET", "/jobs/job_1/report.json", {"json": profile_report})
        scripted.on(
            "GET", "/jobs/job_1/report.md", {"body": b"# Profile\n", "headers": {"Content-Type": "text/markdown"}}
        )
        return scripted

    return script


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("pass", ExitCode.OK), ("fail", ExitCode.GATE_FAILED), ("inconclusive", ExitCode.INCONCLUSIVE)],
)
def test_it_ends_with_the_verdict(service_of, cli, outcome, code):
    done = cli(service_of(outcome).url, KEY, "profile", "net.onnx", "--max-p99", "5ms", "--out", "report.md")
    assert done.code == code, done.stderr
    assert done.stdout == "job_1\n"
    assert Path("report.md").read_text() == "# Profile\n"
    assert f"verdict: {outcome}" in done.stderr
    assert "step 1/2 cpu: measuring latency" in done.stderr
    assert "step 2/2 openvino measured" in done.stderr


def test_it_asks_for_what_was_typed(service_of, cli):
    scripted = service_of()
    words = [
        "profile",
        "net.onnx",
        "--target",
        "cpu",
        "--target",
        "openvino:threads=2,batch=8",
        "--baseline",
        "old.onnx",
    ]
    words += ["--data", "data.npz", "--tune", "--max-p99", "0.005s", "--gate", "latency_p50 max_ratio 90% warn"]
    done = cli(scripted.url, KEY, *words, "--seconds", 3, "--label", "branch=main", "--priority", 2, "--json")
    assert done.code == 0, done.stderr
    (asked,) = scripted.asked("POST", "/jobs")
    assert json.loads(asked.body) == {
        "kind": "profile",
        "model": "mdl_1",
        "baseline": "mdl_2",
        "dataset": "dst_1",
        "targets": [{"provider": "cpu"}, {"provider": "openvino", "threads": 2, "batch": 8}],
        "gates": [
            {"metric": "latency_p50", "rule": "max_ratio", "value": 0.9, "level": "warn"},
            {"metric": "latency_p99", "rule": "max", "value": 5.0},
        ],
        "tune": {},
        "measure_seconds": 3.0,
        "labels": {"branch": "main"},
        "priority": 2,
    }
    assert done.json["exit_code"] == 0
    assert done.json["report"]["kind"] == "profile"


def test_options_add_to_a_job_file(service_of, cli, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"targets": [{"provider": "cpu"}], "tune": {"max_seconds": 5}}))
    scripted = service_of()
    done = cli(scripted.url, KEY, "profile", "mdl_9", "--spec", "job.json", "--target", "cpu:threads=2", "--tune")
    assert done.code == 0, done.stderr
    assert json.loads(scripted.asked("POST", "/jobs")[0].body) == {
        "kind": "profile",
        "model": "mdl_9",
        "targets": [{"provider": "cpu"}, {"provider": "cpu", "threads": 2}],
        "tune": {"max_seconds": 5},
    }
    (tmp_path / "recipe.json").write_text(json.dumps({"passes": []}))
    refused = cli(scripted.url, KEY, "profile", "mdl_9", "--spec", "recipe.json")
    assert refused.code == ExitCode.USAGE
    assert "holds no profile" in refused.stderr


def test_what_was_typed_is_what_the_engine_takes():
    limits = [gates.parse_gate("latency_p99 max 5ms"), gates.parse_gate("latency_p99 max_ratio 80%")]
    targets = [recipe.parse_target(text) for text in ("cpu", "openvino:threads=2,batch=8")]
    read = engine.read_spec({"kind": "profile", "targets": targets, "gates": limits, "tune": {}})
    assert [(target.provider, target.threads, target.batch) for target in read.targets] == [
        ("cpu", 1, 1),
        ("openvino", 2, 8),
    ]
    assert [gate.value for gate in read.gates] == [5.0, 0.8]


def test_a_target_takes_its_providers_options():
    target = recipe.parse_target("cuda:batch=32,prefer_nhwc=1,inputs_on_device")
    (read,) = engine.read_spec({"kind": "profile", "targets": [target]}).targets
    assert (read.batch, read.provider_options, read.inputs_on_device) == (32, {"prefer_nhwc": "1"}, True)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        # An address of memory is no option of a job.
        ("cuda:gpu_external_alloc=140000", "cuda has no option gpu_external_alloc that a job may set"),
        ("cuda:prefer_nhwc=yes", "prefer_nhwc of cuda is one of 0, 1, and not yes"),
        ("tensorrt:trt_engine_cache_path=/tmp", "has no option trt_engine_cache_path"),
        ("cpu:cores=2", "cpu has no option cores that a job may set: it has none"),
        ("cpu:inputs_on_device", "cannot be bound on the device of cpu"),
    ],
)
def test_an_option_that_a_provider_lacks_is_refused_by_name(target, words):
    with pytest.raises(ValueError, match=words):
        engine.read_spec({"kind": "profile", "targets": [recipe.parse_target(target)]})


@pytest.mark.parametrize("text", ["cpu:cores", "cpu:threads=many", ":threads=2", "cpu:threads", "cpu:threads="])
def test_a_target_that_cannot_be_read_says_what_one_is(text):
    with pytest.raises(UsageError, match="PROVIDER"):
        recipe.parse_target(text)


def test_the_sdk_asks_for_a_profile(service_of):
    scripted = service_of()
    with Client(scripted.url, KEY) as client:
        job = client.jobs.profile("mdl_1", [{"provider": "cpu"}], baseline="mdl_2", dataset="dst_1", tune=True)
    assert (job.kind, job.output_model) == ("profile", None)
    (asked,) = scripted.asked("POST", "/jobs")
    assert json.loads(asked.body) == {
        "kind": "profile",
        "model": "mdl_1",
        "baseline": "mdl_2",
        "dataset": "dst_1",
        "targets": [{"provider": "cpu"}],
        "gates": [],
        "tune": {},
    }


def shown(report):
    console = Console(width=200, record=True, file=StringIO())
    render_report.show(report, console, title="net.onnx")
    return console.export_text()


def test_a_report_is_shown_target_by_target(profile_report):
    text = shown(profile_report)
    row = next(line for line in text.splitlines() if "cpu, 2 threads" in line and "62.9 MB" in line)
    for word in ("1.000 ms", "4.000 ms", "50.0 ms", "30.0 ms", "5.000 ms", "2.00x as fast (1.60 to 2.50)"):
        assert word in row
    assert "openvino, 1 thread, batch 1: The target has no kernel for Erf. Use float32." in text
    assert "900.0" in text
    assert "fell back: conv\N{REPLACEMENT CHARACTER}[2J1 (Conv)" in text
    assert "with 4 intra-op threads" in text
    assert "chosen" in text
    assert "warning: a warning" in text
    gates = [line for line in text.splitlines() if "latency_p99 max 5" in line]
    assert ["cpu, 2 threads" in gates[0], "openvino" in gates[1]] == [True, True]


def test_a_job_that_exists_shows_its_profile(service_of, cli):
    done = cli(service_of().url, KEY, "report", "job_1")
    assert done.code == 0, done.stderr
    assert "callers at the same time" in done.stderr
