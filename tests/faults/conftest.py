"""The service as real processes on both stacks: broker, API, workers and their children, with short leases, and hands to
kill them."""

import contextlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from models import JobStatus, is_final
from services import artifacts, db, jobs, keys, uploads
from services.publisher import BrokerPublisher
from services.storage import Store, open_store
from settings import Settings
from standalone import broker

from ..servers import Redis, free_ports

TENANT = keys.DEFAULT_TENANT
# Generous: the tests run beside others. What is asserted are outcomes, and bounds that the product promises.
PATIENCE_S = 240.0
# How often a test looks whether something has happened: looking costs those that work.
_LOOK_S = 0.1
SHORT = {
    "ONNXPRESS_LEASE_S": "3",
    "ONNXPRESS_RENEW_S": "0.5",
    "ONNXPRESS_RECONCILE_S": "0.5",
    "ONNXPRESS_RESEND_S": "2",
    # Proving PyTorch takes longer than all else at a worker's start.
    "ONNXPRESS_WORKER_TRAINING": "never",
}
INPUT = (1, 16, 16)
# What a worker's child runs, and what that of a worker runs that knows a coordinator.
_CHILDREN = {"sandbox.child", "sandbox.forking", str(Path(__file__).with_name("study_child.py"))}


def network(seed: int = 0) -> bytes:
    """A small convolutional network with random weights."""
    random = np.random.default_rng(seed)

    def weights(*shape):
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    tensors = {"w1": weights(8, 1, 3, 3), "w2": weights(16, 8, 3, 3), "w3": weights(16, 10)}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *INPUT])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def dataset(samples: int = 64) -> bytes:
    """Unlabelled images."""
    stream = io.BytesIO()
    np.savez(stream, image=np.random.default_rng(1).integers(0, 255, (samples, *INPUT), dtype=np.uint8))
    return stream.getvalue()


@dataclass
class System:
    """A data folder, a broker, workers, and a client's view through the services."""

    data_dir: Path
    settings: Settings
    env: dict[str, str]
    database: db.Database
    store: Store
    broker: "Valkey | Redis"
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    apis: list[subprocess.Popen[bytes]] = field(default_factory=list)
    clients: list[httpx.Client] = field(default_factory=list)

    def start_broker(self):
        self.broker.start()

    def lose_broker(self):
        """Kill the broker and delete all that it knew."""
        self.broker.kill()
        self.broker.forget()

    def start_worker(self, queues="inspect,work", concurrency=1, program=("-m", "worker"), **env):
        with (self.data_dir / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, *program, "--queues", queues, "--concurrency", str(concurrency)],
                env={**self.env, **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def start_api(self, under=()):
        """Serve, and give an HTTP client with a key; `under` are the words of a command that starts the process."""
        (port,) = free_ports(1)
        with (self.data_dir / "api.log").open("ab") as log:
            env = {**self.env, "ONNXPRESS_PORT": str(port)}
            argv = [*under, sys.executable, "-m", "api"]
            self.apis.append(subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True))
        with self.database.transaction() as session:
            key = keys.create(session, TENANT, "test", ("read", "write")).text
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=240
        )
        self.clients.append(client)
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    return client
            assert time.monotonic() < end, (self.data_dir / "api.log").read_text()
            time.sleep(_LOOK_S)

    def upload(self, register, content, **fields):
        with self.store.writer(TENANT, limit=1 << 30) as writer:
            writer.write(content)
            writer.finish()
            with self.database.transaction() as session:
                return register(session, TENANT, writer, name="x", **fields)

    def inputs(self, samples=64):
        """A ready network and a ready dataset."""
        model = self.upload(uploads.register_model, network())
        data = self.upload(uploads.register_dataset, dataset(samples))
        model = self.until(lambda session: _unless_checking(artifacts.get_model(session, TENANT, model.id)))
        data = self.until(lambda session: _unless_checking(artifacts.get_dataset(session, TENANT, data.id)))
        assert (model.state, data.state) == ("ready", "ready"), (model.problem, data.problem)
        return model, data

    def upload_network(self, seed=0):
        """An upload that waits for its inspection, the smallest unit of work."""
        return self.upload(uploads.register_model, network(seed))

    def inspected(self, model):
        return self.until(lambda session: _unless_checking(artifacts.get_model(session, TENANT, model.id)))

    def submit(self, inputs, passes=("simplify",), student=None, **fields):
        model, data = inputs
        steps = [{"type": step} if isinstance(step, str) else step for step in passes]
        spec = engine.read_spec({"recipe": {"passes": steps}, **fields})
        # The same work is asked for again and again here, and is to be done.
        request = jobs.Request(model.id, data.id, spec, {}, student_id=student and student.id, cache="refuse")
        with self.database.transaction() as session:
            return jobs.submit(session, TENANT, request).job.id

    def job(self, job_id):
        with self.database.reading() as session:
            return jobs.get(session, TENANT, job_id)

    def events(self, job_id):
        with self.database.reading() as session:
            return jobs.events(session, TENANT, job_id)

    def until(self, ask, seconds=PATIENCE_S):
        """Ask the database until the answer is true; gives the answer."""
        end = time.monotonic() + seconds
        while True:
            with self.database.reading() as session:
                answer = ask(session)
            if answer:
                return answer
            assert time.monotonic() < end, f"nothing after {seconds} s\n{self.log()}"
            time.sleep(_LOOK_S)

    def wait_status(self, job_id, *statuses, seconds=PATIENCE_S):
        return self.until(
            lambda session: (job := jobs.get(session, TENANT, job_id)).status in statuses and job, seconds
        )

    def wait_final(self, job_id, seconds=PATIENCE_S):
        final = [status for status in JobStatus if is_final(status)]
        return self.wait_status(job_id, *final, seconds=seconds)

    def wait_event(self, job_id, kind, count=1):
        return self.until(
            lambda session: [event.type for event in jobs.events(session, TENANT, job_id)].count(kind) >= count
        )

    def children(self):
        """The sandbox children of this service's workers, dead parents or not."""
        mine = str(self.data_dir)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if _CHILDREN & set(process.cmdline()) and process.cwd().startswith(mine):
                    found.append(process)
        return found

    def job_child(self):
        """The process that works on a job, once there is one. It has a keeper above it."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            # To look at every process costs those that work: not before there is a folder to work in, here or on another host.
            places = itertools.chain(self.data_dir.glob("work/unt_*"), self.data_dir.glob("*/work/unt_*"))
            children = self.children() if any(places) else ()
            for child in children:
                with contextlib.suppress(psutil.Error):
                    if "/unt_" in child.cwd() and child.parent() in children:
                        return child
            time.sleep(_LOOK_S)
        raise AssertionError(f"no child\n{self.log()}")

    def finished_steps(self):
        """The numbers of the steps that attempts on this machine have written down as done."""
        return {int(path.stem) for path in self.data_dir.glob("work/unt_*/*/steps/??.json")}

    def stop_after_a_step(self):
        """Stop the process that works on a job between two steps of it; gives the process and what it has done."""
        child = self.job_child()
        end = time.monotonic() + PATIENCE_S
        while not self.finished_steps():
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        child.suspend()
        return child, self.finished_steps()

    def begun_steps(self, job_id, attempt):
        """The numbers of the steps that an attempt has begun."""
        return [
            event.data["step"]
            for event in self.events(job_id)
            if event.type == "step_started" and event.attempt == attempt
        ]

    def pool_process(self, worker, child):
        """The worker's pool process that has the sandbox child."""
        pool = child.parent().parent()
        assert pool.ppid() == worker.pid
        return pool

    def kill_tree(self, worker):
        """Kill a worker's parent and pool at once, not their sandbox children."""
        processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
        for process in processes:
            process.kill()
        worker.wait()
        self.workers.remove(worker)

    def assert_no_child_left(self):
        end = time.monotonic() + PATIENCE_S
        while self.children():
            assert time.monotonic() < end, self.children()
            time.sleep(_LOOK_S)

    def assert_committed_once(self, job_id):
        ends = [event for event in self.events(job_id) if event.type in {"succeeded", "failed", "cancelled"}]
        assert len(ends) == 1, [(event.type, event.attempt, event.data) for event in self.events(job_id)]

    def log(self):
        return (self.data_dir / "worker.log").read_text()[-6000:]

    def close(self):
        for client in self.clients:
            client.close()
        for api in self.apis:
            # With the process above it, which may be another command.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(api.pid, signal.SIGKILL)
            api.wait()
        for worker in self.workers:
            # A stopped one must go on to hear it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGCONT)
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.broker.close()
        self.database.dispose()


def _unless_checking(row):
    return row if row.state != "checking" else None


class Valkey:
    """The embedded broker, as the standalone service starts it."""

    def __init__(self, data_dir):
        self.sock = broker.socket_path(data_dir)
        self.fields = {"broker_url": broker.url(self.sock)}
        self.process = None

    def start(self):
        self.sock.parent.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            broker.command(broker.find_binary(), self.sock), stdout=subprocess.DEVNULL, start_new_session=True
        )
        broker.wait_until_ready(self.sock)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def forget(self):
        shutil.rmtree(self.sock.parent)

    close = kill


# Of what is tried on both, `make test` tries one and `make soak` the other.
STACKS = ("embedded", pytest.param("production", marks=pytest.mark.soak))


@pytest.fixture
def stack(request):
    """The kind of databases, broker and store; tests name another one by `@pytest.mark.parametrize(..., indirect=True)`."""
    return getattr(request, "param", "embedded")


@pytest.fixture
def system(stack, request, tmp_path, migrate):
    """A service with a broker and no worker yet: on SQLite, Valkey and a folder, or on Postgres, Redis and S3."""
    if stack == "embedded":
        server = Valkey(tmp_path)
        fields = server.fields
    else:
        server = Redis()
        fields = {
            **request.getfixturevalue("bucket_fields"),
            "broker_url": server.url,
            "broker_prefix": "onnxpress:",
            "database_url": request.getfixturevalue("postgres_url"),
        }
    env = {name: value for name, value in os.environ.items() if not name.startswith("ONNXPRESS_")}
    env |= {"ONNXPRESS_DATA_DIR": str(tmp_path), "ONNXPRESS_LOG_LEVEL": "INFO", **SHORT}
    env |= {f"ONNXPRESS_{name.upper()}": value for name, value in fields.items()}
    short = {name.removeprefix("ONNXPRESS_").lower(): value for name, value in SHORT.items()}
    settings = Settings(data_dir=tmp_path, **fields, **short)
    migrate(settings)
    publisher = BrokerPublisher(settings)
    database = db.Database.from_settings(settings, publisher)
    with database.transaction() as session:
        keys.ensure_tenant(session, TENANT)
    made = System(tmp_path, settings, env, database, open_store(settings), server)
    made.start_broker()
    yield made
    made.close()
    publisher.close()
