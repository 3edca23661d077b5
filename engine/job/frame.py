"""What jobs of every kind have in common: folders, going on where an earlier attempt ended, the crash rule, lock and events."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from engine.errors import EngineError, ModelInvalidError, ModelUnsupportedError, VerificationFailedError
from engine.job.workspace import write_atomically
from engine.measure.memory import store_feed
from engine.report.files import report_files
from engine.report.run_facts import Memory
from engine.report.values import AnyReport, Refusal
from engine.runtime.engine_cache import keep_engines_in
from engine.runtime.host_lock import HostLock
from engine.runtime.sessions import Feed
from engine.target import Target

Event = dict[str, Any]
Probe = Callable[[Path, Target, Path], Memory]
_Record = TypeVar("_Record", bound=BaseModel)
_Done = TypeVar("_Done")
_RETRIED = "retried"
# What the network is to blame for ends a step and not the job.
_OF_THE_NETWORK = (VerificationFailedError, ModelInvalidError, ModelUnsupportedError)


@dataclass(frozen=True)
class Blame:
    """How a kind of job tells of a step that died, or that the network did not let happen."""

    died: str
    hint: str
    code: Literal["verification_failed", "unsupported"]


@dataclass(frozen=True)
class Frame:
    """A job at work in its workspace.

    Args:
        workspace: holds `model/model.onnx` and whatever else the kind of job takes. `steps` in it keeps what was done, so
            that a second call goes on after the last finished step.
        tell: told what happens, with JSON values only.
        lock: what all jobs of a host share; the job holds its working side except while it measures.
        probe: measures peak memory and load time in a fresh process.
        crashed: steps during which an earlier attempt died; they are refused, but for those that go on from a checkpoint of
            their own: these are tried once more.
        deadline: seconds of `time.monotonic()` at which the job is ended from outside; None: never.
        names: what the owner calls the student and the teacher.
    """

    workspace: Path
    tell: Callable[[Event], None]
    lock: HostLock
    probe: Probe
    crashed: frozenset[int] = frozenset()
    deadline: float | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for folder in (self.steps, self.scratch):
            folder.mkdir(exist_ok=True)
        keep_engines_in(self.scratch / "engines")

    @property
    def model(self) -> Path:
        """The network."""
        return self.workspace / "model" / "model.onnx"

    @property
    def baseline(self) -> Path | None:
        """The network to compare with, if there is one."""
        return self._other("baseline")

    @property
    def student(self) -> Path | None:
        """The network that a compression starts from, where that is not the network."""
        return self._other("student")

    @property
    def teacher(self) -> Path | None:
        """The network that is learnt from, where that is not the network."""
        return self._other("teacher")

    def _other(self, role: str) -> Path | None:
        path = self.workspace / role / "model.onnx"
        return path if path.exists() else None

    @property
    def steps(self) -> Path:
        """What survives an attempt: files, and folders of files, whose names begin with the number of a step."""
        return self.workspace / "steps"

    @property
    def scratch(self) -> Path:
        """What does not."""
        return self.workspace / "scratch"

    @property
    def out(self) -> Path:
        """The results."""
        return self.workspace / "out"

    @property
    def seconds(self) -> float:
        """How long this attempt has taken."""
        return round(time.monotonic() - self.started, 3)

    # Steps

    def finished(self, index: int, kind: type[_Record]) -> _Record | None:
        """Give what an earlier attempt found out in a step."""
        record = self._record(index)
        return kind.model_validate_json(record.read_bytes()) if record.exists() else None

    def attempt(
        self, index: int, name: str, work: Callable[[], _Done], blame: Blame, *, resumable: bool = False
    ) -> _Done | Refusal:
        """Do a step, or say why it is left out: it killed an earlier attempt, or the network is to blame.

        A `resumable` one is left out when it has killed two.
        """
        self.tell({"type": "step_started", "step": index, "pass": name})
        if index in self.crashed and not (resumable and self._first_retry(index)):
            attempts = "two earlier attempts" if resumable else "an earlier attempt"
            return Refusal(
                code="crashed",
                reason=f"The process died {blame.died} in {attempts}, so it was left out.",
                hint=blame.hint,
            )
        try:
            return work()
        except _OF_THE_NETWORK as error:
            return Refusal(code=blame.code, reason=error.message, node=error.node, hint=error.hint)
        except EngineError as error:
            error.step = index
            raise

    def keep(self, index: int, record: BaseModel, *, status: str, refusal: Refusal | None) -> None:
        """Store what came of a step. From here on a later attempt does not do it again."""
        write_atomically(self._record(index), record.model_dump_json().encode())
        shutil.rmtree(self._checkpoint(index), ignore_errors=True)
        reason = refusal.reason if refusal else None
        self.tell({"type": "step_finished", "step": index, "status": status, "reason": reason})

    def checkpoint(self, index: int) -> Path:
        """Give a folder for a step's own use until it is finished; it survives an attempt."""
        folder = self._checkpoint(index)
        folder.mkdir(exist_ok=True)
        return folder

    def _first_retry(self, index: int) -> bool:
        """Note in the step's checkpoint that it is tried again, and say whether it is for the first time."""
        mark = self.checkpoint(index) / _RETRIED
        first = not mark.exists()
        mark.touch()
        return first

    def _record(self, index: int) -> Path:
        return self.steps / f"{index:02}.json"

    def _checkpoint(self, index: int) -> Path:
        return self.steps / f"{index:02}.checkpoint"

    def warn(self, text: str) -> None:
        """Tell what the job's owner should know before it is over; the report says it too."""
        self.tell({"type": "warning", "message": text})

    # Measuring

    def measuring(self, what: str, index: int | None = None) -> None:
        """Tell what is measured now, and of which step."""
        self.tell({"type": "measuring", **({} if index is None else {"step": index}), "what": what})

    def memory(self, model: Path, target: Target, feed: Feed) -> Memory:
        """Load and run a network in a process of its own."""
        path = self.scratch / "feed.npz"
        store_feed(path, feed)
        with self.lock.measuring():
            return self.probe(model, target, path)

    # The result

    def clear_results(self) -> None:
        """Begin with an empty `out`."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def finish(self, report: AnyReport) -> None:
        """Write the report beside what else is in `out`, and tell the end."""
        for name, content in report_files(report).items():
            write_atomically(self.out / name, content)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.tell({"type": "finished", "verdict": report.verdict.outcome})
