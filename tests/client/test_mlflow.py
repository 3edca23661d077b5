"""Networks in a real MLflow server.

MLflow is heavy and wants older packages than ours, so that it runs in an environment of its own where somebody has made one:
`python -m venv env && env/bin/pip install mlflow onnx onnxruntime ./client`, then ONNXPRESS_MLFLOW_PYTHON=env/bin/python.
"""

import json
import os
import subprocess
import time

import httpx
import pytest

from onnxpress.exit_codes import ExitCode

from ..servers import free_ports

PYTHON = os.environ.get("ONNXPRESS_MLFLOW_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="ONNXPRESS_MLFLOW_PYTHON names no Python with MLflow")
LOAD = """
import sys, json, numpy, mlflow
loaded = mlflow.pyfunc.load_model("models:/net@prod")
print(json.dumps(list(loaded.predict({"image": numpy.zeros((1, 3, 12, 12), numpy.float32)})["logits"].shape)))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Give the address of an MLflow server with a database of its own."""
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([PYTHON, "-m", "mlflow", *command], stdout=log, stderr=log, cwd=folder)
        address = f"http://127.0.0.1:{port}"
        try:
            while process.poll() is None:
                try:
                    httpx.get(f"{address}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.2)
            assert process.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            process.terminate()
            process.wait()


def test_a_network_is_registered_and_its_alias_moves_on_pass_only(
    embedded, key, service, server, compressed, network, tmp_path
):
    env = {**os.environ, "ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": key, "MLFLOW_TRACKING_URI": server}

    def run(*words):
        return subprocess.run([PYTHON, *words], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)

    def ask(path, **query):
        return httpx.get(f"{server}/api/2.0/mlflow/{path}", params=query).raise_for_status().json()

    to = ("--to", "mlflow://net", "--alias", "prod")
    done = run("-m", "onnxpress", "export", compressed.id, *to)
    assert done.returncode == 0, done.stderr
    version = ask("registered-models/alias", name="net", alias="prod")["model_version"]
    report = service.jobs.report(compressed.id)
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["onnxpress.sha256"] == report["compressed"]["sha256"]
    metrics = {
        each["key"]: each["value"] for each in ask("runs/get", run_id=version["run_id"])["run"]["data"]["metrics"]
    }
    assert metrics["size_bytes"] == report["size"]["compressed"]
    # An upload was judged by nobody.
    done = run("-m", "onnxpress", "export", network, *to)
    assert done.returncode == ExitCode.GATE_FAILED, done.stderr
    assert ask("registered-models/alias", name="net", alias="prod")["model_version"]["version"] == version["version"]
    assert len(ask("model-versions/search", filter="name = 'net'")["model_versions"]) == 2
    loaded = run("-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1]) == [1, 10]
