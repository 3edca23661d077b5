"""`onnxpress-server doctor` on a service that runs, and on one that does not."""

import json
import subprocess
import sys


def doctor(data_dir, *words):
    argv = [sys.executable, "-m", "standalone", "doctor", "--data", str(data_dir), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_service_that_runs_is_well(embedded):
    done = doctor(embedded.data_dir, "--json")
    told = json.loads(done.stdout)
    found = {one["check"]: one["state"] for one in told["findings"]}
    assert (done.returncode, told["ok"]) == (0, True), told
    expected = {"data", "database", "revision", "durability", "clock", "workers", "keys", "retention", "broker", "broker binary", "store", "disk", "sandbox", "onnxruntime"}  # fmt: skip
    assert set(found) == expected
    assert all(found[name] == "ok" for name in expected - {"sandbox", "disk"}), told
    assert any("runs cpu" in one["message"] for one in told["findings"])
    assert not [path for path in embedded.data_dir.iterdir() if path.name.startswith(".doctor")]


def test_people_read_lines_with_what_to_do(embedded):
    done = doctor(embedded.data_dir)
    assert done.returncode == 0
    assert "ok       broker" in done.stdout
    assert "a message there and back" in done.stdout


def test_what_was_never_started_is_told(tmp_path):
    done = doctor(tmp_path / "none")
    assert done.returncode == 1
    assert "onnxpress-server serve" in done.stdout
    assert not (tmp_path / "none").exists()
    done = doctor(tmp_path, "--json")
    told = json.loads(done.stdout)
    found = {one["check"]: one["state"] for one in told["findings"]}
    assert (done.returncode, told["ok"]) == (1, False)
    assert found["database"] == found["broker"] == "problem"
    assert not (tmp_path / "onnxpress.db").exists()
