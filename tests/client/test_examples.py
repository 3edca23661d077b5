"""The examples run from beginning to end beside the real service: trained, exported, compressed, served, asked."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _serve(folder):
    """Start the example server on a free port; gives it with its address."""
    command = [sys.executable, str(EXAMPLES / "serve" / "serve.py"), str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("example", "name", "prepare", "right"),
    [
        ("pytorch", "image", lambda digits: digits.images[:50, None] / 16, lambda given: np.argmax(given["scores"], 1)),
        ("scikit-learn", "X", lambda digits: digits.data[:50], lambda given: np.asarray(given["label"])),
    ],
)
# test_service.py and test_exports.py go the same way with a network that is made here, at every run.
@pytest.mark.soak
def test_an_example_ends_with_a_network_that_is_served(embedded, key, tmp_path, example, name, prepare, right):
    # Here: it takes seconds to load, and every process with tests reads this file.
    from sklearn.datasets import load_digits

    env = {**os.environ, "ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": key}
    command = [sys.executable, str(EXAMPLES / example / "compress.py"), "--out", "served"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verdict: pass" in done.stdout, done.stdout
    smaller = next(path for path in (tmp_path / "served" / "onnx").glob("model*.onnx"))
    assert smaller.stat().st_size < next(tmp_path.glob("*.onnx")).stat().st_size
    onnx.checker.check_model(str(smaller))
    process, address = _serve(tmp_path / "served")
    try:
        with process.stdout:
            assert httpx.get(f"{address}/health").json() == {"status": "ok"}
            digits = load_digits()
            answer = httpx.post(f"{address}/predict", json={"inputs": {name: prepare(digits).tolist()}})
            assert answer.status_code == 200, answer.text
            assert np.mean(right(answer.json()["outputs"]) == digits.target[:50]) > 0.8
            wrong = httpx.post(f"{address}/predict", json={"inputs": {"nothing": 1}})
            assert (wrong.status_code, name in wrong.json()["error"]) == (422, True)
    finally:
        process.terminate()
        process.wait()
