"""`python -m api`: a real process, from its start to SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api.__main__ import refuse_unless_private
from services import db, keys
from settings import Settings

from ..servers import PATIENCE_S, free_ports

ROOT = Path(__file__).resolve().parents[2]


def test_it_serves_logs_and_lets_long_polls_go_at_the_end(tmp_path):
    settings = Settings(data_dir=tmp_path)
    db.upgrade(settings)
    keys.ensure_admin_key(settings, tmp_path / "admin.key")
    incoming = tmp_path / "store" / "incoming"
    incoming.mkdir(parents=True)
    for name, age_s in {"died": 2 * 86400, "going on": 60}.items():
        (incoming / name).write_bytes(b"x")
        os.utime(incoming / name, times=(time.time() - age_s,) * 2)
    (port,) = free_ports(1)
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(tmp_path), "ONNXPRESS_PORT": str(port)}
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        headers = {"Authorization": f"Bearer {(tmp_path / 'admin.key').read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            end = time.monotonic() + 2 * PATIENCE_S
            while True:
                try:
                    assert client.get("/readyz").json() == {"status": "ok"}
                    break
                except httpx.TransportError:
                    assert time.monotonic() < end
                    time.sleep(0.05)
            assert [path.name for path in incoming.iterdir()] == ["going on"]
            raw = {"Content-Type": "application/octet-stream", "X-Request-Id": "find-me"}
            poll = client.build_request("POST", "/v1/models", params={"wait": 60}, content=b"slow", headers=raw)
            with ThreadPoolExecutor(1) as pool:
                answered = pool.submit(client.send, poll)
                while not client.get("/v1/models").json()["items"]:
                    assert time.monotonic() < end
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                # It would have waited for a minute.
                answer = answered.result(45)
            process_ended = process.wait(PATIENCE_S)
        assert (answer.status_code, answer.json()["state"]) == (201, "checking")
        # uvicorn closes everything, then dies of the signal that it was sent.
        assert process_ended == -signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    text = (tmp_path / "api.log").read_text()
    line = next(line for line in text.splitlines() if "find-me" in line)
    assert '"status": 201' in line
    assert '"route": "/v1/models"' in line
    assert '"received": 4' in line
    # What is in a key is nowhere in the log.
    assert headers["Authorization"].split("_")[-1] not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_open_service_is_not_offered_to_a_network(host):
    with pytest.raises(SystemExit, match="without authentication"):
        refuse_unless_private(host, authenticated=False)
    refuse_unless_private(host, authenticated=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_may_have_one(host):
    refuse_unless_private(host, authenticated=False)
