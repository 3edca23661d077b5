"""The real service, and a real HTTP server that misbehaves on purpose."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypedDict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import engine
import onnxpress
from onnxpress.cli import app

from ..servers import free_ports


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(TypedDict, total=False):
    """What to say: `json` or `body`; `cut` closes after so many bytes of the body, `silent` never says anything."""

    status: int
    json: Any
    body: bytes
    headers: dict[str, str]
    cut: int
    silent: bool


Say = Answer | Callable[[Request], Answer]
NOT_FOUND: Answer = {
    "status": 404,
    "json": {"title": "Not Found", "status": 404, "code": "not_found", "detail": "gone"},
}


class Server(ThreadingHTTPServer):
    # Joined at the end, so that no thread outlives its test.
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Scripted:
    """Answers each address by its script; the last line is repeated."""

    def __init__(self) -> None:
        self.scripts: dict[tuple[str, str], list[Say]] = {}
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self.silence_over = False
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def on(self, method: str, path: str, *says: Say) -> None:
        self.scripts[method, f"/v1{path}"] = list(says)

    def asked(self, method: str, path: str) -> list[Request]:
        return [one for one in self.requests if (one.method, one.path.partition("?")[0]) == (method, f"/v1{path}")]

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _say(self, request: Request) -> Answer:
        script = self.scripts.get((request.method, request.path.partition("?")[0]), [NOT_FOUND])
        say = script.pop(0) if len(script) > 1 else script[0]
        return say(request) if callable(say) else say

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, dict(self.headers.items()), body)
                scripted.requests.append(request)
                self._answer(scripted._say(request))

            def _answer(self, answer: Answer) -> None:
                # One connection per request: a closed client leaves no thread behind in a read.
                self.close_connection = True
                if answer.get("silent"):
                    scripted.silence_over |= not scripted.stopped.wait(120)
                    return
                body = json.dumps(answer["json"]).encode() if "json" in answer else answer.get("body", b"")
                headers = {"Content-Length": str(len(body)), "Connection": "close", **answer.get("headers", {})}
                self.send_response(answer.get("status", 200))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: answer.get("cut")])

            def log_message(self, *_args: object) -> None:
                pass

        return Handler


@pytest.fixture
def scripted():
    """Give a real server whose every answer is scripted."""
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def client(scripted):
    """Give a client of the scripted server."""
    with onnxpress.Client(scripted.url, "opk_test_secret", patience=10.0) as found:
        yield found


def _latency(scale):
    names = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    return {**dict.fromkeys(names, 1.2 * scale), "samples": 400, "dropped": 3}


def _facts(size):
    return {"sha256": "0" * 64, "size_bytes": size, "parameters": 180_000, "nodes": 40, "ops": {"Conv": 9}}


def _interval(low, high):
    return {"low": low, "high": high, "confidence": 0.95}


@pytest.fixture
def report():
    """Give a report as the engine writes it: one step applied, one refused, one gate of each outcome."""
    ratio = {"value": 0.69, "interval": _interval(0.66, 0.72)}
    memory = {"peak_rss_bytes": 60 << 20, "load_ms": 30.0, "first_run_ms": 2.0}
    gates = [
        ("top1", "max_drop", "pass", "error", 0.001, 0.004),
        ("size_bytes", "max_ratio", "fail", "warn", 0.34, 0.34),
        ("latency_p95", "max_ratio", "inconclusive", "error", 0.69, 0.72),
    ]
    document = {
        "summary": "1.45x faster and 2.96x smaller for 0.1 points of top1.",
        "unchanged": False,
        "target": {"provider": "cpu", "threads": 1, "batch": 1},
        "original": _facts(729_000),
        "compressed": _facts(246_000),
        "steps": [
            {
                "index": 0,
                "type": "simplify",
                "parameters": {},
                "status": "applied",
                "change": {"summary": "Folded 9 BatchNormalization nodes."},
                "seconds": 0.4,
            },
            {
                "index": 1,
                "type": "quantize_static",
                "parameters": {},
                "status": "refused",
                "refusal": {"code": "too_lossy", "reason": "top1 fell by 4.7 points.", "hint": "Use 7-bit weights."},
                "seconds": 3.2,
            },
        ],
        "size": {"original": 729_000, "compressed": 246_000},
        "quality": [
            {
                "metric": "top1",
                "original": 0.912,
                "compressed": 0.911,
                "difference": -0.001,
                "interval": _interval(-0.004, 0.002),
                "standard_error": 0.0015,
                "samples": 1000,
            },
            {
                "metric": "sqnr_db",
                "original": None,
                "compressed": 34.1,
                "difference": None,
                "interval": _interval(33.9, 34.3),
                "standard_error": 0.1,
                "samples": 1000,
            },
        ],
        "latency": {
            "original": _latency(1.0),
            "compressed": _latency(0.69),
            "ratios": dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), ratio),
            "cpu_ratio": ratio,
            "noise_floor": _interval(0.99, 1.01),
            "stable": True,
            "nodes_by_provider": {"CPUExecutionProvider": 40},
        },
        "memory": {"original": memory, "compressed": {**memory, "peak_rss_bytes": 48 << 20}},
        "verdict": {
            "outcome": "inconclusive",
            "gates": [
                {
                    "gate": {"metric": metric, "rule": rule, "value": 0.01, "level": level},
                    "measured": measured,
                    "bound": bound,
                    "outcome": outcome,
                    "reason": f"because of {metric}",
                }
                for metric, rule, outcome, level, measured, bound in gates
            ],
        },
        "calibration_samples": 512,
        "held_out_samples": 1000,
        "environment": {
            "cpu": "A CPU",
            "cpu_flags": ["avx2"],
            "cores": 2,
            "onnxruntime": "1.32.0",
            "provider": "CPUExecutionProvider",
            "python": "3.11",
            "system": "Linux",
        },
        "seconds": 12.0,
        "warnings": ["a warning"],
    }
    return engine.Report.model_validate(document).model_dump(mode="json")


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Give the command line, run in this process: `cli(url, key, *words)`."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ONNXPRESS_", "GITHUB_", "CI"))]:
        monkeypatch.delenv(name)

    def run(url: str, key: str, *words: object, patience: float = 5.0) -> Result:
        env = {"ONNXPRESS_URL": url, "ONNXPRESS_API_KEY": key, "ONNXPRESS_PATIENCE": str(patience), "COLUMNS": "160"}
        done = CliRunner().invoke(app, [str(word) for word in words], env=env)
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="package")
def embedded(tmp_path_factory):
    """Give the whole real service on a free port."""
    # Imported here: most tests need no service, and it brings half the world.
    from standalone.serve import Embedded

    with Embedded(
        tmp_path_factory.mktemp("var"), host="127.0.0.1", port=free_ports(1)[0], workers=1, say=print
    ) as service:
        yield service


@pytest.fixture(scope="package")
def key(embedded):
    """Give the real service's admin key."""
    return embedded.key_file.read_text().strip()


@pytest.fixture(scope="package")
def service(embedded, key):
    """Give a client of the real service."""
    with onnxpress.Client(embedded.url, key) as found:
        yield found


@pytest.fixture(scope="session")
def net(tmp_path_factory):
    """Give a small network's file: what is measured here is the way, not the gain."""
    random = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 4, name)

    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("Conv", ["same", "w1"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 12, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "net", [image], [logits], [weight("w1", 16, 3, 3, 3), weight("w2", 16, 10)])
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    """Give a file of samples, half of them labelled."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    labels = np.where(np.arange(128) < 64, -1, random.integers(0, 10, 128))
    np.savez(path, image=random.random((128, 3, 12, 12), dtype=np.float32), label=labels)
    return path


@pytest.fixture(scope="package")
def network(service, net):
    """Give the stored network's id."""
    return service.models.upload(net).id


@pytest.fixture(scope="package")
def data(service, npz):
    """Give the stored data's id."""
    return service.datasets.upload(npz, metric="top1").id


@pytest.fixture(scope="package")
def compressed(service, network, data):
    """Give a job that ran the usual recipe, every step of it kept, with gates that hold."""
    gates = [
        {"metric": "top1", "rule": "min", "value": 0.0},
        {"metric": "size_bytes", "rule": "max", "value": 100_000},
    ]
    spec = {"kind": "compress", "model": network, "dataset": data, "gates": gates, "labels": {"made-by": "tests"}}
    spec["recipe"] = {"passes": [{"type": "simplify"}, {"type": "quantize_static"}], "exact": True}
    job = service.jobs.submit(spec, idempotency_key="compressed")
    assert service.jobs.submit(spec, idempotency_key="compressed").id == job.id
    seen = list(service.jobs.updates(job.id, timeout=300))
    assert seen[-1].succeeded, seen[-1].problem
    assert [one.status for one in seen][-2:] == ["running", "succeeded"], "changes arrive as they happen"
    # Of which step depends on the machine: a short one may come and go between two answers.
    assert any(one.progress for one in seen), "so does progress"
    told = [event.data["step"] for event in service.jobs.events(job.id) if event.type == "step_started"]
    assert told == [0, 1]
    return seen[-1]
