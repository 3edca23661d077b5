"""One attempt at a unit: claim it, have a child work on it, watch, and commit what came of it if it is still ours."""

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import engine
import sandbox
from services import attempts, logs, queue
from services.claims import Claim, Result
from services.db import Database
from services.errors import AnswerInvalidError, CorruptError, NotFoundError, ServiceError, UnavailableError
from services.problems import MEASURING_LIMIT, MEMORY_LIMIT, OUTPUT_INVALID, RUNTIME_LIMIT, STORE_DAMAGED, Problem
from services.storage import Store
from services.unit_kinds import read_answer
from settings import Settings
from worker.workspace import OutputInvalidError, Workspace

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_WAIT_S = 0.25
# A worker that was told to stop lets its unit end for so long, then gives it back.
_DRAIN_S = 15.0
# How long a result waits for a database that is away before the attempt counts as lost.
_COMMIT_S = 60.0
_MAX_EVENTS = 2000
_MAX_EVENT_BYTES = 1 << 20
_TEXT_LIMIT = 2000
_SMALL = 64 << 20
_CODE = re.compile("[a-z][a-z_]{0,63}")
_MOST_STEPS = 1 << 16
_ENDS = {
    "memory_limit": MEMORY_LIMIT,
    "garbled": OUTPUT_INVALID,
    "unwatched": OUTPUT_INVALID,
    "measuring_limit": MEASURING_LIMIT,
}
_STRICT = "strict"
# The folder in which workers of this host agree on who measures.
_QUIET = "quiet"
# What needs no device file.
_ON_PROCESSOR = frozenset({"cpu", "openvino"})

Why = Literal["ended", "cancel", "lost", "drain"]


class LeaseLostError(Exception):
    """Somebody else has the unit now, or nobody: nothing that this attempt does counts any more."""


class Attempts:
    """Runs units in this process, one after the other."""

    def __init__(
        self,
        database: Database,
        store: Store,
        settings: Settings,
        workspaces: Path,
        *,
        worker_id: str,
        queues: frozenset[str],
        classes: frozenset[str] = frozenset(),
        draining: Callable[[], bool],
        fork_server: sandbox.ForkServer | None = None,
    ) -> None:
        self.fork_server = fork_server
        self.database = database
        self.store = store
        self.settings = settings
        self.workspaces = workspaces
        self.draining = draining
        self._worker_id = worker_id
        self._queues = queues
        self._classes = classes

    def run(self, unit_id: str) -> None:
        """Work on the unit, if it is there to be taken."""
        if self.draining():
            return
        try:
            with self.database.transaction() as session:
                claim = queue.claim_next(
                    session,
                    unit_id,
                    worker_id=self._worker_id,
                    lease_s=self.settings.lease_s,
                    queues=self._queues,
                    classes=self._classes,
                )
        except OperationalError as error:
            # The message counts as lost and is sent again; a claim whose commit was not heard of ends with its lease.
            _log.warning("unit %s: database away: %s", unit_id, type(error.orig).__name__)
            return
        if claim is None:
            _log.info("unit %s: not there to be taken", unit_id)
            return
        _Attempt(self, claim).run()


class _Attempt:
    """One claimed unit."""

    def __init__(self, place: Attempts, claim: Claim) -> None:
        self._place = place
        self._settings = place.settings
        self._claim = claim
        self._child: sandbox.Child | None = None
        self._told_level = False
        self._told_waiting_s = 0.0
        self._events_left = _MAX_EVENTS
        self._event_bytes_left = _MAX_EVENT_BYTES
        self._renewed = time.monotonic()

    def run(self) -> None:
        """Do it, whatever happens; only an unknown error leaves the unit to the end of its lease."""
        with logs.about(unit=self._claim.unit_id, job=self._claim.job_id, tenant=self._claim.tenant_id):
            self._run()

    def _run(self) -> None:
        claim = self._claim
        _log.info("unit %s: attempt %d of %s", claim.unit_id, claim.attempt, claim.kind)
        try:
            workspace = Workspace.prepare(self._place.workspaces, claim, self._place.store, self._beat)
            ended = self._work(workspace)
        except LeaseLostError:
            self._left(whole_unit=False)
            _log.warning("unit %s: attempt %d was superseded", claim.unit_id, claim.attempt)
        except (CorruptError, NotFoundError):
            self._end(lambda session: self._fail(session, STORE_DAMAGED))
            self._left(whole_unit=True)
        except OperationalError as error:
            # It was away for longer than it was worth waiting for; the unit is free when its lease ends.
            _log.warning("unit %s: database away: %s", claim.unit_id, type(error.orig).__name__)
            self._left(whole_unit=False)
        except (OSError, ServiceError) as error:
            # The disk is full, no process can be started, ...: not the job's fault, and it may pass.
            _log.warning("unit %s: %s: %s", claim.unit_id, type(error).__name__, error)
            self._end(self._lost)
            self._left(whole_unit=False)
        else:
            self._left(whole_unit=ended)

    def _left(self, *, whole_unit: bool) -> None:
        unit = self._place.workspaces / self._claim.unit_id
        Workspace(unit, unit / str(self._claim.attempt)).remove(whole_unit=whole_unit)

    def _work(self, workspace: Workspace) -> bool:
        """Give whether the unit is final; its checkpoints stay for the next attempt where it is not."""
        child = self._child = sandbox.start(
            self._order(workspace), limits=self._limits(), server=self._place.fork_server
        )
        why: Why = "lost"
        try:
            why = self._watch(child)
        finally:
            outcome = child.wait() if why == "ended" else child.kill()
        assert outcome is not None
        if why == "lost":
            raise LeaseLostError
        self._patiently(lambda: self._note_level(child))
        self._patiently(lambda: self._note(child.events()))
        if why == "cancel":
            self._end(lambda session: attempts.cancelled(session, self._claim.unit_id, self._claim.token))
            return True
        if why == "drain" and outcome.kind == "killed":
            self._end(lambda session: self._give_back(session, counted=False))
            return False
        return self._settle(workspace, outcome)

    def _watch(self, child: sandbox.Child) -> Why:
        """Wait for the child's end, or for a reason to end it."""
        look_at = drain_at = 0.0
        while child.wait(_WAIT_S) is None:
            now = time.monotonic()
            if self._place.draining():
                drain_at = drain_at or now + _DRAIN_S
                if now >= drain_at:
                    return "drain"
            if now < look_at:
                continue
            look_at = now + _LOOK_S
            try:
                seen = self._look()
                self._note_level(child)
                self._note(child.events())
                self._beat()
            except LeaseLostError:
                return "lost"
            except OperationalError as error:
                _log.warning("unit %s: database away: %s", self._claim.unit_id, type(error.orig).__name__)
                if time.monotonic() - self._renewed > self._settings.lease_s:
                    return "lost"
                continue
            if seen != "held":
                return seen
        return "ended"

    def _look(self) -> Literal["held", "cancel", "lost"]:
        with self._place.database.reading() as session:
            return queue.look(session, self._claim.unit_id, self._claim.token)

    def _beat(self) -> None:
        """Renew the lease when it is time; raises LeaseLostError."""
        if time.monotonic() - self._renewed < self._settings.renew_s:
            return
        told = self._waited_s()
        with self._place.database.transaction() as session:
            held = queue.renew(
                session,
                self._claim.unit_id,
                self._claim.token,
                lease_s=self._settings.lease_s,
                cpu_s=self._cpu_s(),
                waited_s=told - self._told_waiting_s,
            )
        if not held:
            raise LeaseLostError
        self._renewed = time.monotonic()
        self._told_waiting_s = told

    def _waited_s(self) -> float:
        """Give the seconds that the child has waited for others' measurements, or stood still for one."""
        return self._child.waited_s if self._child else 0.0

    def _cpu_s(self) -> float:
        """Give the processor time of all attempts at the unit so far."""
        return self._claim.cpu_s + (self._child.cpu_s if self._child else 0.0)

    def _note_level(self, child: sandbox.Child) -> None:
        """Write down how strongly the child is confined, once it is known. It is not the child who says so."""
        if self._told_level or child.confinement is None:
            return
        with self._place.database.transaction() as session:
            held = queue.confined(session, self._claim.unit_id, self._claim.token, child.confinement.level)
        if not held:
            raise LeaseLostError
        self._told_level = True

    def _note(self, events: list[dict[str, Any]]) -> None:
        """Pass on what the child told, of repeated progress only the newest, and not without end."""
        if not events:
            return
        kept = [
            event
            for event, after in zip(events, [*events[1:], {}], strict=True)
            if not event.get("type") == after.get("type") == "progress"
        ]
        kept = kept[: self._events_left]
        self._events_left -= len(kept)
        kept = [event for event in kept if self._has_room(event)]
        if not kept:
            return
        with self._place.database.transaction() as session:
            held = queue.progress(session, self._claim.unit_id, self._claim.token, kept)
        if not held:
            raise LeaseLostError

    def _has_room(self, event: dict[str, Any]) -> bool:
        self._event_bytes_left -= len(json.dumps(event))
        return self._event_bytes_left >= 0

    def _settle(self, workspace: Workspace, outcome: sandbox.Outcome) -> bool:
        """Commit what the child's end means; gives whether the unit is final."""
        claim = self._claim
        if outcome.kind != "done":
            _log.warning("unit %s: child %s %s\n%s", claim.unit_id, outcome.kind, outcome.exit_code, outcome.log)
        if outcome.kind == "done" and outcome.value is not None:
            workspace.keep_cache(lambda: self._patiently(self._beat))
            try:
                return self._finish_patiently(workspace, outcome.value)
            except (AnswerInvalidError, OutputInvalidError, ValidationError) as error:
                _log.warning("unit %s: %s", claim.unit_id, error)
                return self._end(lambda session: self._fail(session, OUTPUT_INVALID))
        if outcome.kind == "refused" and outcome.problem is not None:
            problem = _checked(outcome.problem)
            if problem["retryable"] and problem["class"] == "transient":
                self._end(self._lost)
                return False
            return self._end(lambda session: self._fail(session, problem))
        if outcome.kind in {"unconfined", "disk_full"} or (
            outcome.kind == "crashed" and outcome.exit_code != -signal.SIGXCPU
        ):
            # Another worker may confine its children better, or have room.
            self._end(self._crashed if outcome.kind == "crashed" else self._lost)
            return False
        return self._end(lambda session: self._fail(session, _ENDS.get(outcome.kind, RUNTIME_LIMIT)))

    def _finish_patiently(self, workspace: Workspace, value: Mapping[str, Any]) -> bool:
        """Commit the result also through a short absence of the store: it may be the work of hours."""
        give_up = time.monotonic() + _COMMIT_S
        while True:
            try:
                return self._finish(workspace, value)
            except UnavailableError as error:
                if time.monotonic() > give_up:
                    raise
                _log.warning("unit %s: store away: %s", self._claim.unit_id, error)
                self._patiently(self._beat)
                time.sleep(_LOOK_S)

    def _finish(self, workspace: Workspace, value: Mapping[str, Any]) -> bool:
        claim, store = self._claim, self._place.store
        answer = read_answer(claim, value)
        limit = max(1, claim.largest_file) * self._settings.max_model_bytes
        with workspace.outputs(store, claim.tenant_id, answer.leaves, limit, self._beat) as files:
            result = Result(answer, files.model_files, files.report_files)
            return self._end(
                lambda session: attempts.finish(
                    session, store, claim.unit_id, claim.token, result, settings=self._settings
                )
            )

    def _end(self, step: Callable[[Session], bool]) -> bool:
        """Commit an end; raises LeaseLostError."""

        def commit() -> None:
            with self._place.database.transaction() as session:
                waited_s = self._waited_s() - self._told_waiting_s
                held = attempts.spent(
                    session, self._claim.unit_id, self._claim.token, cpu_s=self._cpu_s(), waited_s=waited_s
                ) and step(session)
            if not held:
                raise LeaseLostError

        self._patiently(commit)
        return True

    @staticmethod
    def _patiently(action: Callable[[], None]) -> None:
        """Do it also through a short absence of the database; raises LeaseLostError after a long one."""
        give_up = time.monotonic() + _COMMIT_S
        while True:
            try:
                return action()
            except OperationalError:
                if time.monotonic() > give_up:
                    raise LeaseLostError from None
                time.sleep(_LOOK_S)

    def _fail(self, session: Session, problem: Problem) -> bool:
        return attempts.fail(session, self._place.store, self._claim.unit_id, self._claim.token, problem)

    def _crashed(self, session: Session) -> bool:
        return attempts.crashed(session, self._place.store, self._claim.unit_id, self._claim.token, self._settings)

    def _lost(self, session: Session) -> bool:
        return self._give_back(session, counted=True)

    def _give_back(self, session: Session, *, counted: bool) -> bool:
        return attempts.give_back(
            session, self._place.store, self._claim.unit_id, self._claim.token, self._settings, counted=counted
        )

    def _order(self, workspace: Workspace) -> sandbox.Order:
        order = self._claim.order
        payload = {**order.payload, "limit": self._settings.max_model_bytes}
        return sandbox.Order(
            order.verb,
            workspace.path,
            payload,
            quiet=self._settings.data_dir.resolve() / _QUIET,
            tenant=self._claim.tenant_id,
            devices=self._settings.isolation != _STRICT and _needs_devices(order.payload.get("spec")),
            isolation=self._settings.isolation,
        )

    def _limits(self) -> sandbox.Limits:
        return sandbox.Limits(
            runtime_s=self._claim.runtime_s,
            memory_bytes=self._claim.memory_mb << 20,
            threads=os.cpu_count() or 1,
            measuring_s=self._settings.max_measuring_turn_s,
            file_bytes=self._claim.largest_file * self._settings.max_model_bytes or _SMALL,
        )


def _needs_devices(spec: Any) -> bool:
    """Tell whether what a unit is asked runs on an accelerator, or may train on one."""
    if spec is None:
        return False
    read = engine.read_spec(spec)
    may_train = read.kind == "search" or engine.trains(read)
    return may_train or any(target.provider not in _ON_PROCESSOR for target in engine.targets_of(read))


def _checked(problem: Mapping[str, Any]) -> Problem:
    """Give the child's problem in our shape: known keys, short texts, words of ours for what they do not fit."""
    code, blame, message = (problem.get(name) for name in ("code", "class", "message"))
    if not (isinstance(code, str) and _CODE.fullmatch(code) and isinstance(message, str)):
        return OUTPUT_INVALID
    found: Problem = {
        "code": code,
        "class": blame if isinstance(blame, str) and blame in {"user", "service", "transient"} else "service",
        "retryable": problem.get("retryable") is True,
        "message": message[:_TEXT_LIMIT],
    }
    for name in ("node", "hint"):
        if isinstance(problem.get(name), str):
            found[name] = problem[name][:_TEXT_LIMIT]
    step = problem.get("step")
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _MOST_STEPS:
        found["step"] = step
    return found
