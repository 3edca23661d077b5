"""The embedded service on one machine: broker, database, workers and API behind one command."""

import fcntl
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Self

from services import db, keys
from settings import Settings
from settings.private_folder import private_folder
from standalone import broker
from standalone.supervisor import Service, Supervisor

READY_S = 60.0
ADMIN_KEY_FILE = "admin.key"
URL_FILE = "url"


class AlreadyServedError(RuntimeError):
    """Another supervisor holds the data folder, or somebody else the port."""


class Embedded:
    """A running embedded service; use as a context manager. The workers stop first, the broker last."""

    def __init__(self, data_dir: Path, *, host: str, port: int, workers: int, say: Callable[[str], None]) -> None:
        self.data_dir = data_dir.resolve()
        self.host = host
        self.port = port or _free_port(host)
        self.workers = workers
        self.url = f"http://{host}:{self.port}"
        self.key_file = self.data_dir / ADMIN_KEY_FILE
        self._say = say
        self._supervisor = Supervisor(say)
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        private_folder(self.data_dir)
        self._lock = lock(self.data_dir)
        try:
            _check_port(self.host, self.port)
            self._say("onnxpress starts ...")
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _start(self) -> None:
        env = {**os.environ, "ONNXPRESS_DATA_DIR": str(self.data_dir), "ORT_DISABLE_TELEMETRY": "1"}
        env |= {"ONNXPRESS_HOST": self.host, "ONNXPRESS_PORT": str(self.port)}
        if "ONNXPRESS_BROKER_URL" not in env:
            env["ONNXPRESS_BROKER_URL"] = self._start_broker(env)
        settings = Settings(data_dir=self.data_dir)
        db.upgrade(settings)
        keys.ensure_admin_key(settings, self.key_file)
        python = [sys.executable, "-m"]
        self._run("api", [*python, "api"], env)
        # Inspection has a pool of its own: a long job never holds up an upload's answer.
        self._run("inspect", [*python, "worker", "--queues", "inspect", "--concurrency", "1"], env, grace_s=40)
        # Alone on its machine, it takes the jobs for everything that runs here.
        worker = [*python, "worker", "--queues", "work", "--targets", "all", "--concurrency", str(self.workers)]
        self._run("worker", worker, env, grace_s=40)
        self._wait_ready()
        (self.data_dir / URL_FILE).write_text(self.url + "\n")

    def _start_broker(self, env: dict[str, str]) -> str:
        sock = broker.socket_path(self.data_dir)
        private_folder(sock.parent)
        service = Service(
            "broker",
            broker.command(broker.find_binary(), sock),
            env,
            self.data_dir / "log" / "broker.log",
            outlives_supervisor=True,
            before_start=lambda: broker.pid(sock) if broker.answers(sock) else None,
        )
        self._supervisor.start(service)
        broker.wait_until_ready(sock)
        return broker.url(sock)

    def _run(self, name: str, argv: list[str], env: dict[str, str], grace_s: float = 10.0) -> None:
        self._supervisor.start(Service(name, argv, env, self.data_dir / "log" / f"{name}.log", grace_s=grace_s))

    def _wait_ready(self) -> None:
        end = time.monotonic() + READY_S
        while not _ready(self.url):
            if time.monotonic() > end:
                raise TimeoutError(f"the API was not ready within {READY_S:g} s; see {self.data_dir / 'log'}")
            self.tend()
            time.sleep(0.05)

    def pid(self, name: str) -> int | None:
        """Give the process id of `broker`, `api`, `inspect` or `worker`, None while it does not run."""
        return self._supervisor.pid(name)

    def tend(self) -> None:
        """Start again what died."""
        self._supervisor.tend()

    def stop(self) -> None:
        """Stop workers, API and broker, in this order, and free the data folder."""
        self._supervisor.stop()
        (self.data_dir / URL_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def serve(data_dir: Path, *, host: str, port: int, workers: int) -> int:
    """Run the embedded service until Ctrl-C or SIGTERM; gives the exit code."""
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with Embedded(data_dir, host=host, port=port, workers=workers, say=_tell) as service:
        print(f"URL       {service.url}   (API description: {service.url}/openapi.json)")
        print(f"API key   in {service.key_file}")
        print(f"data      {service.data_dir}   (logs in {service.data_dir / 'log'})")
        print("Ctrl-C stops it; accepted jobs go on at the next start.", flush=True)
        while not stopping:
            service.tend()
            time.sleep(0.2)
        print("stopping: workers first ...", file=sys.stderr)
    print("stopped", file=sys.stderr)
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def lock(data_dir: Path) -> IO[str]:
    """Have the data folder for ourselves until the file is closed; raises AlreadyServedError."""
    lock = (data_dir / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise AlreadyServedError(
            f"another onnxpress serves {data_dir}; stop it, or choose another folder with --data"
        ) from None
    return lock


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    """Raise AlreadyServedError where the API could not listen: known before anything starts."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0]) as probe:
            # As uvicorn does: what the last one left in TIME_WAIT takes nothing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        raise AlreadyServedError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another one with --port, 0 takes a free one"
        ) from None


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - our own http address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
