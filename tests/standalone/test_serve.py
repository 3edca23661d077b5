"""The embedded service as a person runs it: one command, Ctrl-C, and again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from standalone import broker
from standalone.serve import AlreadyServedError, Embedded

ROOT = Path(__file__).resolve().parents[2]


def _processes_of(data_dir: Path) -> list[int]:
    """Give every process of this machine that was started for the data folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if f"ONNXPRESS_DATA_DIR={data_dir}".encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def _until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@contextmanager
def _stopped_at_last(process):
    """Stop it where a test ends early: leaving it would wait for ever."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()


def test_serve_tells_where_it_is_and_ctrl_c_stops_all_of_it(tmp_path):
    argv = [sys.executable, "-m", "standalone", "serve", "--data", str(tmp_path), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ONNXPRESS_")}
    with (
        subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process,
        _stopped_at_last(process),
    ):
        told = ""
        while "Ctrl-C" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        url = re.search(r"http://127\.0\.0\.1:\d+", told).group()
        assert (tmp_path / "url").read_text().strip() == url
        key_file = tmp_path / "admin.key"
        assert str(key_file) in told
        assert key_file.stat().st_mode & 0o777 == 0o600
        request = urllib.request.Request(f"{url}/v1/passes")
        request.add_header("Authorization", f"Bearer {key_file.read_text().strip()}")
        with urllib.request.urlopen(request, timeout=240) as answer:
            assert answer.status == 200
        # Pools start when their worker has tried what it can run.
        _until(lambda: len(_processes_of(tmp_path)) >= 5)
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 0
    assert not (tmp_path / "url").exists()
    assert _processes_of(tmp_path) == []


def test_a_taken_port_is_said_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        argv = [sys.executable, "-m", "standalone", "serve", "--data", str(tmp_path), "--port", str(port)]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
    assert "starts" not in done.stderr
    assert _processes_of(tmp_path) == []


def test_what_dies_comes_back_and_the_key_stays(tmp_path):
    told = []
    with Embedded(tmp_path, host="127.0.0.1", port=0, workers=1, say=told.append) as service:
        key = service.key_file.read_text()
        with pytest.raises(AlreadyServedError, match="another onnxpress"):
            Embedded(tmp_path, host="127.0.0.1", port=0, workers=1, say=print).__enter__()
        sock = broker.socket_path(tmp_path)
        first = broker.pid(sock)
        os.kill(first, signal.SIGKILL)

        def revived():
            service.tend()
            return broker.answers(sock) and broker.pid(sock) != first

        _until(revived)
        assert any("broker" in line for line in told)
    with Embedded(tmp_path, host="127.0.0.1", port=0, workers=1, say=print) as service:
        assert service.key_file.read_text() == key
    assert _processes_of(tmp_path) == []
