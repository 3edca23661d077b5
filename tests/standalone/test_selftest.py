"""`onnxpress-server selftest`: the operator's own installation, tried out and harmed in a folder that is thrown away."""

import os
import subprocess
import sys

import pytest

from standalone import selftest


# tests/faults does the same harm at every run.
@pytest.mark.soak
def test_this_installation_holds_what_it_promises_and_the_real_service_is_not_touched(tmp_path):
    real = tmp_path / "real"
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "ONNXPRESS_DATA_DIR": str(real)}
    # Whoever asked these would get no further.
    env |= {
        "ONNXPRESS_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "ONNXPRESS_BROKER_URL": "redis://127.0.0.1:1",
    }
    (tmp_path / "tmp").mkdir()
    argv = [sys.executable, "-m", "standalone", "selftest", "--faults"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert [line.split()[0] for line in told] == ["ok"] * 9 + ["all"]
    assert not real.exists()
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("onnxpress-selftest")]


def test_what_does_not_hold_is_said(capsys):
    def check():
        """The sky is green."""
        raise selftest.FailedError("It is blue.")

    assert not selftest._holds(check)
    assert capsys.readouterr().out == "FAILED   The sky is green. It is blue.\n"
