"""A disk that is full: uploads and jobs are refused with a word, what is there is served, what was accepted ends when there is room."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ..servers import free_ports
from .conftest import PATIENCE_S, dataset, network

RAW = {"Content-Type": "application/octet-stream"}
PROGRAM = Path(__file__).with_name("small_disk.py")
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


class SmallDisk:
    """The whole service on a disk of 48 MiB, seen from outside: over HTTP, and its disk through one of its processes."""

    def __init__(self, folder, port):
        argv = (*OWN_MOUNTS, sys.executable, PROGRAM, folder, "48m")
        serve = (sys.executable, "-m", "standalone", "serve", "--data", folder, "--port", str(port))
        env = {name: value for name, value in os.environ.items() if not name.startswith("ONNXPRESS_")}
        env |= {"ONNXPRESS_LEASE_S": "3", "ONNXPRESS_RENEW_S": "0.5", "ONNXPRESS_RECONCILE_S": "0.5"}
        env |= {"ONNXPRESS_RESEND_S": "2", "ONNXPRESS_WORKER_TRAINING": "never"}
        self.process = subprocess.Popen([*argv, *serve], env=env, stdout=subprocess.PIPE, text=True)
        told = self.process.stdout.readline() + self.process.stdout.readline()
        self.root = Path(f"/proc/{self.process.pid}/root{folder}")
        key = (self.root / "admin.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        assert str(port) in told, told
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=90)

    def fill(self):
        """Leave no byte free."""
        with (self.root / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"\0" * size)

    def free(self):
        (self.root / "ballast").unlink()

    def until(self, ask):
        end = time.monotonic() + PATIENCE_S
        while not (found := ask()):
            assert time.monotonic() < end
            time.sleep(0.05)
        return found

    def close(self):
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=240)


@pytest.fixture
def small_disk(tmp_path):
    probe = (*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", tmp_path)
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            made = SmallDisk(tmp_path, free_ports(1)[0])
            yield made
            made.close()
            return
    pytest.skip("this machine lets nobody mount a disk of his own")


def test_a_full_disk_costs_nothing_that_was_accepted(small_disk):
    client = small_disk.client
    model = client.post("/v1/models?wait=60", content=network(), headers=RAW).json()
    data = client.post("/v1/datasets?wait=60", content=dataset(), headers=RAW).json()
    assert (model["state"], data["state"]) == ("ready", "ready"), (model, data)
    order = {"model": model["id"], "dataset": data["id"], "recipe": {"passes": [{"type": "simplify"}] * 8}}

    small_disk.fill()
    for answer in (
        client.post("/v1/models", content=network(1) * 3, headers=RAW),
        client.post("/v1/jobs", json=order),
    ):
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "unavailable", True)
    assert client.get(f"/v1/models/{model['id']}/content").content == network()
    assert [one["id"] for one in client.get("/v1/models").json()["items"]] == [model["id"]]
    assert client.get("/livez").status_code == 200

    small_disk.free()
    accepted = client.post("/v1/jobs", json=order)
    assert accepted.status_code == 202, accepted.text
    job = f"/v1/jobs/{accepted.json()['id']}"
    small_disk.until(lambda: list(small_disk.root.glob("work/unt_*/1/steps")))
    # While the job writes, for longer than its worker's lease.
    small_disk.fill()
    time.sleep(4)
    small_disk.free()
    small_disk.until(lambda: client.get(job, params={"wait": 30}).json()["finished_at"])
    done = client.get(job).json()
    told = client.get(f"{job}/logs").text + (small_disk.root / "log" / "worker.log").read_text()[-6000:]
    assert (done["status"], done["problem"]) == ("succeeded", None), told
    made = client.get(f"/v1/models/{done['output_model']}")
    assert client.get(f"/v1/models/{done['output_model']}/content").status_code == 200, made.text
    assert list((small_disk.root / "store" / "incoming").iterdir()) == []
    assert client.post("/v1/models", content=network(1), headers=RAW).status_code == 201
