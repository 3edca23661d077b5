"""`onnxpress-server selftest`: a job through a service of this installation, and with `--faults` while its parts are killed.

Everything is in a folder of its own that is thrown away: no setting of the real service is read, nothing of it is touched.
"""

import io
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy.orm import Session

import engine
from models import Dataset, JobStatus, Model, ModelState, is_final
from sandbox import processes
from services import artifacts, db, jobs, uploads
from services.errors import CorruptError
from services.publisher import BrokerPublisher
from services.scopes import DEFAULT_TENANT
from services.storage import Folder
from settings import Settings
from standalone import broker
from standalone.serve import Embedded

_PATIENCE_S = 120.0
_LOOK_S = 0.05
# Whoever has cancelled a job waits so long at most until it takes no processor.
_CANCEL_S = 5.0
_TENANT = DEFAULT_TENANT
_CHILD = b"sandbox.child"
_SHORT = {"LEASE_S": "3", "RENEW_S": "0.5", "RECONCILE_S": "0.5", "RESEND_S": "2", "WORKER_TRAINING": "never"}
_Found = TypeVar("_Found")
# So many that a job cannot end before it is cancelled.
_MANY_STEPS = 16


class FailedError(Exception):
    """Something was not as it should be."""


def run(*, faults: bool) -> int:
    """Try everything in turn and say of each how it went; 1 where something was not as it should be."""
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-selftest-"))
    try:
        with _own_settings(folder), _Service(folder) as service:
            checks = service.faults() if faults else []
            # Nothing is to be learnt of faults where nothing works without any.
            failed = sum(not _holds(check) for check in checks) if _holds(service.does_a_job) else 1 + len(checks)
        if failed:
            print(f"{failed} of {1 + len(checks)} are not as they should be. The end of the log:", file=sys.stderr)
            print((folder / "log" / "worker.log").read_text(errors="replace")[-2000:], file=sys.stderr)
        else:
            print(f"all {1 + len(checks)} are as they should be; nothing is left of it")
        return int(failed > 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _holds(check: Callable[[], None]) -> bool:
    began = time.monotonic()
    assert check.__doc__ is not None
    try:
        check()
    except (FailedError, TimeoutError) as error:
        print(f"FAILED   {check.__doc__} {error}", flush=True)
        return False
    print(f"ok       {check.__doc__} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


@contextmanager
def _own_settings(folder: Path) -> Iterator[None]:
    """Have this process and its children know nothing of the real service, and lose patience soon."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("ONNXPRESS_"):
            del os.environ[name]
    os.environ.update({f"ONNXPRESS_{name}": value for name, value in _SHORT.items()})
    os.environ["ONNXPRESS_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Service:
    """A service that is thrown away, and what is done to it. The first line of each check is what it shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = Folder(folder / "store")
        self._embedded = self._new()

    def _new(self) -> Embedded:
        return Embedded(self._folder, host="127.0.0.1", port=0, workers=1, say=lambda _text: None)

    def __enter__(self) -> Self:
        self._embedded.__enter__()
        settings = Settings(data_dir=self._folder, broker_url=broker.url(broker.socket_path(self._folder)))
        self._publisher = BrokerPublisher(settings)
        self._database = db.Database.from_settings(settings, self._publisher)
        return self

    def __exit__(self, *exc: object) -> None:
        self._database.dispose()
        self._publisher.close()
        self._embedded.__exit__(*exc)

    def faults(self) -> list[Callable[[], None]]:
        """Give what `--faults` does, in turn."""
        return [
            self.survives_the_end_of_a_process,
            self.survives_the_end_of_the_worker,
            self.survives_the_loss_of_the_broker,
            self.survives_the_end_of_the_api,
            self.goes_on_after_a_restart,
            self.cancels,
            self.refuses_what_is_no_network,
            self.gives_out_nothing_damaged,
        ]

    # Checks

    def does_a_job(self) -> None:
        """An upload is inspected, and a job on it succeeds."""
        self._model = self._uploaded(uploads.register_model, _network(), "ready")
        self._data = self._uploaded(uploads.register_dataset, _samples(), "ready")
        self._must_succeed(self._submit())

    def survives_the_end_of_a_process(self) -> None:
        """The process of a job is killed: the job is tried again, and succeeds once."""
        job_id = self._submit()
        os.kill(self._child(), signal.SIGKILL)
        self._must_succeed(job_id)

    def survives_the_end_of_the_worker(self) -> None:
        """The worker is killed: it is started again, and the job succeeds once."""
        job_id = self._submit()
        self._child()
        for pid in list(processes.tree(self._pid("worker"))):
            os.kill(pid, signal.SIGKILL)
        self._must_succeed(job_id)

    def survives_the_loss_of_the_broker(self) -> None:
        """The broker is killed and all of its messages are deleted: the job succeeds once."""
        job_id = self._submit()
        pid = self._pid("broker")
        os.kill(pid, signal.SIGKILL)
        shutil.rmtree(broker.socket_path(self._folder).parent / "appendonlydir", ignore_errors=True)
        self._until(lambda: self._embedded.pid("broker") not in {None, pid}, "the broker does not come back")
        self._must_succeed(job_id)

    def survives_the_end_of_the_api(self) -> None:
        """The API is killed: it is started again and answers."""
        os.kill(self._pid("api"), signal.SIGKILL)
        self._until(lambda: self._embedded.pid("api") is None, "it does not die")
        self._until(self._answers, "it does not answer any more")

    def goes_on_after_a_restart(self) -> None:
        """The whole service is stopped and started again: the job goes on, and succeeds once."""
        job_id = self._submit()
        # It does not end before the service does.
        os.kill(self._child(), signal.SIGSTOP)
        self._embedded.stop()
        self._embedded = self._new()
        self._embedded.__enter__()
        self._must_succeed(job_id)

    def cancels(self) -> None:
        """A job that is cancelled takes no processor any more within 5 seconds."""
        job_id = self._submit(steps=_MANY_STEPS)
        child = self._child()
        self._write(lambda session: jobs.cancel(session, _TENANT, job_id))
        asked = time.monotonic()
        self._until(lambda: not Path(f"/proc/{child}").exists(), "its process goes on")
        if time.monotonic() - asked > _CANCEL_S:
            raise FailedError(f"It took {time.monotonic() - asked:.1f} s.")
        self._ended(job_id, JobStatus.CANCELLED)

    def refuses_what_is_no_network(self) -> None:
        """A file that is no network is refused with a sentence."""
        model = self._uploaded(uploads.register_model, b"This is not a network.", "rejected")
        if not (model.problem or {}).get("message"):
            raise FailedError("There is no sentence.")

    def gives_out_nothing_damaged(self) -> None:
        """A bit of a stored file flips: the file is not given out, and no job works on it."""
        path = self._store.path(_TENANT, self._sha256())
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        try:
            b"".join(self._store.read(_TENANT, path.name))
        except CorruptError:
            self._ended(self._submit(), JobStatus.FAILED, code="store_damaged")
        else:
            raise FailedError("It is given out.")

    # Hands

    def _read(self, step: Callable[[Session], _Found]) -> _Found:
        with self._database.reading() as session:
            return step(session)

    def _write(self, step: Callable[[Session], _Found]) -> _Found:
        with self._database.transaction() as session:
            return step(session)

    def _until(self, ask: Callable[[], _Found], otherwise: str) -> _Found:
        end = time.monotonic() + _PATIENCE_S
        while not (found := ask()):
            if time.monotonic() > end:
                raise FailedError(f"After {_PATIENCE_S:g} s {otherwise}.")
            self._embedded.tend()
            time.sleep(_LOOK_S)
        return found

    def _pid(self, name: str) -> int:
        pid = self._until(lambda: self._embedded.pid(name), f"there is no {name}")
        assert pid is not None
        return pid

    def _child(self) -> int:
        """Give the process that works on a job, once there is one: below its keeper, which looks like it."""

        def look() -> int | None:
            worker = self._embedded.pid("worker")
            found = [pid for pid in processes.tree(worker) if _is_child(pid)] if worker is not None else []
            return found[1] if len(found) > 1 else None

        return self._until(look, "nobody works on the job") or 0

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._embedded.url}/readyz", timeout=2) as answer:  # noqa: S310 - our own http address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _uploaded(self, register: Callable[..., Any], content: bytes, state: str) -> Model | Dataset:
        with self._store.writer(_TENANT, limit=len(content)) as writer:
            writer.write(content)
            writer.finish()
            row = self._write(lambda session: register(session, _TENANT, writer, name="selftest"))
        get = artifacts.get_model if isinstance(row, Model) else artifacts.get_dataset

        def look() -> Any:
            found: Any = self._read(lambda session: get(session, _TENANT, row.id))
            return found if found.state != ModelState.CHECKING else None

        found: Model | Dataset = self._until(look, "the upload is still not inspected")
        if found.state != state:
            raise FailedError(f"It is {found.state}: {found.problem}")
        return found

    def _sha256(self) -> str:
        [file] = self._read(
            lambda session: artifacts.get_artifact(session, _TENANT, str(self._model.artifact_digest)).files
        )
        return str(file.sha256)

    def _submit(self, *, steps: int = 1) -> str:
        spec = engine.read_spec({"recipe": {"passes": [{"type": "simplify"}] * steps}})
        request = jobs.Request(self._model.id, self._data.id, spec, {}, cache="refuse")
        return str(self._write(lambda session: jobs.submit(session, _TENANT, request)).job.id)

    def _must_succeed(self, job_id: str) -> None:
        self._ended(job_id, JobStatus.SUCCEEDED)

    def _ended(self, job_id: str, status: JobStatus, code: str | None = None) -> None:
        def look() -> Any:
            job = self._read(lambda session: jobs.get(session, _TENANT, job_id))
            return job if is_final(JobStatus(job.status)) else None

        job = self._until(look, "the job has not ended")
        told = self._read(lambda session: jobs.events(session, _TENANT, job_id))
        ends = [event for event in told if event.type in {"succeeded", "failed", "cancelled"}]
        if len(ends) != 1:
            raise FailedError(f"It has ended {len(ends)} times.")
        if job.status != status or (code is not None and (job.problem or {}).get("code") != code):
            raise FailedError(f"It is {job.status}: {job.problem}")


def _is_child(pid: int) -> bool:
    try:
        return _CHILD in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _network() -> bytes:
    """Make a small network: a product and what can be simplified away."""
    import numpy as np  # noqa: PLC0415 - as onnx: only where one is made
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["y"], ["z"])],
        "selftest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _samples() -> bytes:
    import numpy as np  # noqa: PLC0415

    stream = io.BytesIO()
    np.savez(stream, x=np.random.default_rng(1).normal(size=(24, 4)).astype(np.float32))
    return stream.getvalue()
