"""The README's path by curl alone is run as it is printed."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _block() -> str:
    found = re.search(r"<!-- curl: .*?-->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "the README has lost its curl block"
    return found.group(1)


# tests/engine/test_bundled_network.py compresses the same network at every run.
@pytest.mark.soak
def test_the_readme_by_curl(embedded, tmp_path):
    (tmp_path / "var").symlink_to(embedded.data_dir)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _block()],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["status"] == "succeeded", job
    small = (tmp_path / "small.onnx").stat().st_size
    assert small * 2.8 <= (ROOT / "examples/fashion-mnist/residual_cnn.onnx").stat().st_size
    assert "top1" in done.stdout
