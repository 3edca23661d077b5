"""Send foreign bytes to a whole service over HTTP: `python -m tests.fuzz.uploads SEED COUNT SECONDS`.

All malformed files, then networks at random, each inspected by the service's workers, eight on their way at a time; health is asked
for meanwhile. One line of JSON at the end: what was answered, what blames the service, which processes died, milliseconds of /livez.
"""

import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import httpx

from standalone import broker
from standalone.serve import Embedded

from .malformed import CASES
from .networks import Networks

PROCESSES = ("api", "broker", "inspect", "worker")
_SIDE_BY_SIDE = 8
# A slow one holds up no more than the rest of these.
_AT_ONCE = 32
_WAIT_S = 60
_MAKE_S = 60
_ROUTES = {"network": "models", "archive": "models", "npz": "datasets", "safetensors": "datasets"}
_LOOK_S = 0.05


def made(which):
    """Give a file's name, its kind and its bytes; `which` names a malformed one, or is the seed of a network."""
    # onnx may also think for ever: that ends this process, in the middle of C++ too.
    signal.alarm(_MAKE_S)
    try:
        if which in CASES:
            kind, make = CASES[which]
            return which, kind, make()
        return which, "network", Networks(which).make()[0]
    finally:
        signal.alarm(0)


class Maker:
    """Makes files in another process, so that making them holds nobody up here; onnx itself may crash over a network, or never end."""

    def __init__(self):
        # Of those over which it did.
        self.fatal = []

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_exc):
        self._processes.shutdown()

    def _start(self):
        self._processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def make(self, names):
        """Give the files of these names, but those that cost their maker its life."""
        wanted = list(names)
        while wanted:
            for file in self._as_far_as_it_gets(wanted):
                wanted.pop(0)
                yield file
            if wanted:
                self.fatal.append(wanted.pop(0))
                self._start()

    def _as_far_as_it_gets(self, names):
        with contextlib.suppress(BrokenProcessPool):
            yield from self._processes.map(made, list(names))


class Senders:
    """Upload, and count what becomes of it."""

    def __init__(self, url, key, seconds):
        self._end = time.monotonic() + seconds
        self.count = 0
        self.client = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=2 * _WAIT_S, trust_env=False
        )
        self.states = Counter()
        # By name: what was answered with 5xx, and what was refused as if the service were to blame.
        self.errors = {}
        self.blamed = {}

    @property
    def have_time(self):
        return time.monotonic() < self._end

    def send(self, file):
        if not self.have_time:
            return
        name, kind, content = file
        self.count += 1
        route = _ROUTES[kind]
        answer = self.client.post(
            f"/v1/{route}?wait={_WAIT_S}", content=content, headers={"Content-Type": "application/octet-stream"}
        )
        if answer.status_code >= 500:
            self.errors[name] = answer.text[:500]
            return
        told = answer.json()
        if "id" not in told:
            self.states[f"refused with {answer.status_code}"] += 1
            return
        found = self.client.get(f"/v1/{route}/{told['id']}").json()
        self.states[found["state"]] += 1
        problem = found.get("problem") or {}
        if problem.get("class") == "service":
            self.blamed[name] = problem


class Health:
    """Asks for health again and again, each time on a connection of its own."""

    def __init__(self, url):
        self.host = url.removeprefix("http://")
        self.times_ms = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self._ends.set()
        self._thread.join()

    def _ask(self):
        while not self._ends.wait(_LOOK_S):
            started = time.perf_counter()
            link = http.client.HTTPConnection(self.host, timeout=60)
            link.request("GET", "/livez")
            assert link.getresponse().status == 200
            link.close()
            self.times_ms.append(1e3 * (time.perf_counter() - started))

    def percentile(self, part):
        return sorted(self.times_ms)[int(part * len(self.times_ms))]


@contextlib.contextmanager
def another_inspector(service) -> Iterator[subprocess.Popen[bytes]]:
    """Have one more worker inspect uploads meanwhile, as an operator adds one to a service that has many."""
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(service.data_dir)}
    env.setdefault("ONNXPRESS_BROKER_URL", broker.url(broker.socket_path(service.data_dir)))
    argv = [sys.executable, "-m", "worker", "--queues", "inspect", "--concurrency", "1"]
    with (service.data_dir / "log" / "inspect.log").open("ab") as log:
        worker = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait()


def upload_all(service, names, seconds):
    """Send files of these names for so long; gives what is printed."""
    before = {name: service.pid(name) for name in PROCESSES}
    senders = Senders(service.url, service.key_file.read_text().strip(), seconds)
    with (
        Maker() as maker,
        ThreadPoolExecutor(_SIDE_BY_SIDE) as threads,
        another_inspector(service) as another,
        Health(service.url) as health,
    ):
        while senders.have_time and (some := list(itertools.islice(names, _AT_ONCE))):
            list(threads.map(senders.send, maker.make(some)))
            service.tend()
        died = ["another inspect"] if another.poll() is not None else []
    died += [name for name in PROCESSES if service.pid(name) != before[name]]
    log = (service.data_dir / "log" / "inspect.log").read_text()
    return {
        "files": senders.count,
        "not_made": maker.fatal,
        "states": dict(senders.states),
        "errors": senders.errors,
        "blamed": senders.blamed,
        "died": died,
        "lost_pool_processes": log.count("WorkerLostError"),
        "livez_ms": {"p50": health.percentile(0.5), "p99": health.percentile(0.99), "count": len(health.times_ms)},
    }


def _say(text):
    sys.stderr.write(f"{text}\n")


def main(words):
    """Serve, send, tell."""
    seed, count, seconds = int(words[0]), int(words[1]), float(words[2])
    names = itertools.chain(CASES, (f"{seed}/{number}" for number in range(count)))
    with (
        tempfile.TemporaryDirectory(prefix="onnxpress-fuzz-") as folder,
        Embedded(Path(folder) / "var", host="127.0.0.1", port=0, workers=1, say=_say) as service,
    ):
        told = upload_all(service, names, seconds)
    sys.stdout.write(json.dumps({"seed": seed, **told}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
