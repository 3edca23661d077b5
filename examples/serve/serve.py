"""Serve a folder that `onnxpress export` has written, as it was measured: `python serve.py FOLDER --port 9000`.

It needs onnxruntime and numpy alone. `POST /predict` takes {"inputs": {name: nested lists}} and gives {"outputs": {...}};
`GET /` says what is served, with what was done to the data that it was measured on; `GET /health` answers 200.
"""

import argparse
import contextlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

MOST_BYTES = 64 << 20


class Served:
    """The network of a folder, in a session with the options that it was measured with."""

    def __init__(self, folder: Path) -> None:
        # The original may lie beside it as model.onnx.
        found = sorted((folder / "onnx").glob("model*.onnx"), key=lambda path: (path.name == "model.onnx", path.name))
        if not found:
            raise SystemExit(f"{folder} holds no onnx/model*.onnx; `onnxpress export JOB --to {folder}` writes one")
        about = folder / "onnxpress.json"
        self.about: dict[str, Any] = json.loads(about.read_text()) if about.exists() else {}
        loading = self.about.get("loading") or {}
        self.session = ort.InferenceSession(
            str(found[0]), _options(loading.get("options") or {}), providers=_providers(loading)
        )
        self.types = {each.name: _dtype(each.type) for each in self.session.get_inputs()}

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run it once; raises ValueError for inputs that it does not take."""
        if inputs.keys() != self.types.keys():
            raise ValueError(f"the inputs are {sorted(self.types)}, not {sorted(inputs)}")
        feed = {name: np.asarray(value, dtype=self.types[name]) for name, value in inputs.items()}
        names = [each.name for each in self.session.get_outputs()]
        try:
            outputs = self.session.run(names, feed)
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise ValueError(str(error)) from error
        return {name: np.asarray(value).tolist() for name, value in zip(names, outputs, strict=True)}


def _options(chosen: dict[str, Any]) -> ort.SessionOptions:
    """Give the session options that the export names."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = chosen.get("threads", 0)
    if chosen.get("execution_mode") == "parallel":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = chosen["inter_op_threads"]
    level = chosen.get("graph_optimization", "all")
    names = {"disabled": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{names[level]}")
    if not chosen.get("spinning", True):
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(loading: dict[str, Any]) -> list[Any]:
    """Give the provider that it was measured on, and refuse to fall back to another one without a word."""
    provider = loading.get("provider", "CPUExecutionProvider")
    if provider not in ort.get_available_providers():
        raise SystemExit(
            f"this onnxruntime has no {provider}, which the network was measured on; it has {ort.get_available_providers()}"
        )
    options = (loading.get("options") or {}).get("provider_options") or {}
    return [(provider, options)] + (["CPUExecutionProvider"] if provider != "CPUExecutionProvider" else [])


def _dtype(name: str) -> Any:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(inner, inner))


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(200, {"status": "ok"} if self.path == "/health" else served.about)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/predict" or not 0 < length <= MOST_BYTES:
                self.close_connection = True
                self._say(
                    404 if self.path != "/predict" else 413, {"error": "POST /predict takes up to 64 MiB of JSON"}
                )
                return
            try:
                body = json.loads(self.rfile.read(length))
                outputs = served.predict(body["inputs"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._say(422, {"error": f"{type(error).__name__}: {error}"})
                return
            self._say(200, {"outputs": outputs})

        def _say(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Say nothing of each request."""

    return Handler


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free one")
    asked = parser.parse_args()
    with ThreadingHTTPServer((asked.host, asked.port), _handler(Served(asked.folder))) as server:
        print(f"http://{asked.host}:{server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
