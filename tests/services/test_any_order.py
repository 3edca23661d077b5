"""Requests, workers and repairs in any order: whatever comes after whatever, every job ends, once, and nothing is lost or left."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select, update

from models import Blob, Job, JobStatus, Unit, UnitStatus, is_final
from services import attempts, jobs, queue, reconcile
from services.errors import ConflictError
from services.problems import RUNTIME_LIMIT

from .conftest import TENANT

ENDS = {"succeeded", "failed", "cancelled"}
PICK = st.integers(0, 1 << 16)
_keys = itertools.count()


class Services(RuleBasedStateMachine):
    """What is known beside what the rows say: every claim that was made, who has which unit, how each job has ended."""

    def __init__(self, service):
        super().__init__()
        self.service = service
        self.messages = service.messages
        self.messages.on, self.messages.sent = True, []
        self.model = service.ready_model()
        self.requests, self.jobs, self.claims = [], [], []
        self.holder, self.ended = {}, {}

    # Requests

    @rule()
    def submit(self):
        request = self.service.request(self.model, labels={"n": str(len(self.requests))})
        self.requests.append((replace(request, cache="refuse"), f"key {next(_keys)}"))
        self.jobs.append(self._submitted(*self.requests[-1]))

    @precondition(lambda self: self.requests)
    @rule(pick=PICK)
    def submit_again(self, pick):
        at = pick % len(self.requests)
        assert self._submitted(*self.requests[at]) == self.jobs[at]

    def _submitted(self, request, key):
        return self.service.submit(request, idempotency_key=key).job.id

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def cancel(self, pick):
        job_id = self.jobs[pick % len(self.jobs)]
        try:
            self.service.write(lambda session: jobs.cancel(session, TENANT, job_id))
        except ConflictError:
            assert job_id in self.ended

    # Workers

    @precondition(lambda self: self.messages.sent)
    @rule(pick=PICK, again=st.booleans())
    def claim(self, pick, again):
        """A message comes, once or again, in whatever order."""
        at = pick % len(self.messages.sent)
        _, unit_id = self.messages.sent[at] if again else self.messages.sent.pop(at)
        claim = self.service.claim(unit_id)
        if claim is not None:
            assert claim.unit_id not in self.holder
            self.claims.append(claim)
            self.holder[claim.unit_id] = claim.token

    def _tries(self, pick, step, *, ends=True):
        """Whoever has ever had a unit tries something with it: it is done for who has it now, and for nobody else."""
        claim = self.claims[pick % len(self.claims)]
        holds = self.holder.get(claim.unit_id) == claim.token
        assert bool(step(claim)) == holds
        if holds and ends:
            del self.holder[claim.unit_id]

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def finish(self, pick):
        self._tries(pick, self.service.finish)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def fail(self, pick):
        self._tries(pick, lambda claim: self._step(attempts.fail, claim, RUNTIME_LIMIT))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def crash(self, pick):
        self._tries(pick, lambda claim: self._step(attempts.crashed, claim, self.service.settings))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, counted=st.booleans())
    def give_back(self, pick, counted):
        settings_ = self.service.settings
        self._tries(pick, lambda claim: self._step(attempts.give_back, claim, settings_, counted=counted))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def renew(self, pick):
        def step(claim):
            return self.service.write(
                lambda session: queue.renew(session, claim.unit_id, claim.token, lease_s=30, cpu_s=1.0)
            )

        self._tries(pick, step, ends=False)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, kind=st.sampled_from(["started", "step_started", "step_finished"]))
    def tell(self, pick, kind):
        def step(claim):
            told = [{"type": kind, "step": 0}]
            return self.service.write(lambda session: queue.progress(session, claim.unit_id, claim.token, told))

        self._tries(pick, step, ends=False)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def hear_of_a_cancel(self, pick):
        claim = self.claims[pick % len(self.claims)]
        seen = self.service.read(lambda session: queue.look(session, claim.unit_id, claim.token))
        assert (seen != "lost") == (self.holder.get(claim.unit_id) == claim.token)
        if seen == "cancel":
            assert self.service.write(lambda session: attempts.cancelled(session, claim.unit_id, claim.token))
            del self.holder[claim.unit_id]

    def _step(self, step, claim, *more, **named):
        return self.service.write(
            lambda session: step(session, self.service.store, claim.unit_id, claim.token, *more, **named)
        )

    # What goes wrong, and who repairs it

    @precondition(lambda self: self.holder)
    @rule(pick=PICK)
    def die(self, pick):
        """A worker gives no sign of life until its lease is over."""
        unit_id = sorted(self.holder)[pick % len(self.holder)]
        self._change(Unit.id == unit_id, lease_until=Unit.created_at)
        self.reconcile()
        del self.holder[unit_id]

    @rule(on=st.booleans())
    def lose_messages(self, on):
        self.messages.on = on
        self.messages.sent = []

    @rule()
    def reconcile(self):
        reconcile.once(self.service.database, self.service.store, self.service.settings, self.messages.waiting)

    def _change(self, which, **values):
        with self.service.database.transaction() as session:
            session.execute(update(Unit).where(which).values(**values))

    # What holds at any time

    @invariant()
    def an_end_is_an_end(self):
        for job_id in self.jobs:
            job, told = self.service.job(job_id), self.service.events(job_id)
            ends = [kind for kind in told if kind in ENDS]
            assert ends == ([job.status] if is_final(JobStatus(job.status)) else []), told
            assert self.ended.get(job_id, job.status) == job.status
            if ends:
                self.ended[job_id] = job.status

    @invariant()
    def what_is_stored_is_named_and_what_is_named_is_stored(self):
        with self.service.database.reading() as session:
            named = {f"{blob.tenant_id}/{blob.sha256}" for blob in session.scalars(select(Blob))}
        assert self.service.stored() == named

    def teardown(self):
        """When nothing goes wrong any more, all that was accepted ends."""
        self.messages.on = True
        for _ in range(100):
            if not self._left():
                break
            long = Unit.status == UnitStatus.QUEUED
            self._change(long, sent_at=None, not_before=None, queued_at=Unit.created_at)
            self._change(Unit.status == UnitStatus.RUNNING, lease_until=Unit.created_at)
            self.reconcile()
            for _, unit_id in self.messages.sent:
                claim = self.service.claim(unit_id)
                assert claim is None or self.service.finish(claim)
            self.messages.sent = []
        assert not self._left()
        self.an_end_is_an_end()

    def _left(self):
        return self.service.read(lambda session: session.scalars(select(Job.id).where(Job.finished_at.is_(None))).all())


@pytest.mark.hypothesis
def test_every_job_ends_once_whatever_comes_in_whatever_order(service):
    # Shrinking repeats what takes seconds; `make fuzz` looks for longer.
    few = settings(
        max_examples=max(6, settings().max_examples // 10),
        stateful_step_count=30,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Services(service), settings=few)


def test_the_rules_reach_every_end(service):
    """The machine above would hold of a service that does nothing."""
    machine = Services(service)
    for number in range(3):
        machine.submit()
        machine.claim(0, again=False)
        [machine.finish, machine.fail, machine.crash][number](number)
        machine.an_end_is_an_end()
    machine.cancel(2)
    machine.an_end_is_an_end()
    assert set(machine.ended.values()) == ENDS
    with pytest.raises(AssertionError):
        machine._tries(0, lambda _claim: True)
