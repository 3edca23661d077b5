"""A job of many units: each arrow between a coordinator, its trials and its continuation, killed, repeated and raced."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select

import engine
from models import Artifact, Job, Model, ModelState, Trial, TrialState, Unit, UnitStatus
from services import artifacts, attempts, backup, jobs, queue, reconcile, retention, trials
from services.claims import Answer, Child, Result, StepBack
from services.errors import ConflictError, NotFoundError
from services.problems import RUNTIME_LIMIT
from services.retention import Place

from .conftest import TENANT, VALUES
from .test_workers import CPU, beat

SPEC = {"kind": "search", "goal": {"minimise": "size"}, "space": {"train": False}}


class KilledError(Exception):
    """The process dies here: its transaction is rolled back."""


def submit(service, **limits):
    """A job whose unit is a coordinator; its message is not sent."""
    request = jobs.Request(service.ready_model().id, None, engine.read_spec(SPEC), {}, cache="refuse")
    job = service.submit(request).job
    service.messages.sent.clear()
    with service.database.transaction() as session:
        for name, value in {"max_units_in_flight": 1000, **limits}.items():
            setattr(session.get_one(Job, job.id), name, value)
    return job


def coordinator(service, job):
    with service.database.reading() as session:
        return session.scalars(select(Unit).where(Unit.job_id == job.id, Unit.kind == "search")).one()


def asks(count, **more):
    spawn = [ask(number, **more) for number in range(1, count + 1)]
    return Result(Answer(StepBack(spawn=spawn, state={"turn": 1})))


def ask(width=1, **more):
    """A candidate that keeps so many channels."""
    proposal = {"point": {"widths": {"g": width}}, "because": "it is cheap"}
    return Child(kind="trial", payload={"proposal": proposal}, **more)


def commit(service, claim, result):
    return service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, claim.token, result))


def fail(service, claim):
    return service.write(
        lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, RUNTIME_LIMIT)
    )


def spawned(service, count=2, **limits):
    """A job that waits for its trials."""
    job = submit(service, **limits)
    assert commit(service, service.claim(coordinator(service, job).id), asks(count))
    return job


def found(service, job):
    return service.read(lambda session: trials.list_trials(session, TENANT, job.id))


def states(service, job):
    return [str(trial.state) for trial in found(service, job)]


def statuses(service, job):
    with service.database.reading() as session:
        asked = select(Unit).where(Unit.job_id == job.id, Unit.kind == "trial").order_by(Unit.position)
        return [str(unit.status) for unit in session.scalars(asked)]


def once(service):
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)


def expire(service, claim):
    with service.database.transaction() as session:
        session.get_one(Unit, claim.unit_id).lease_until = session.get_one(Unit, claim.unit_id).created_at
    once(service)


def held(claim):
    return claim.unit_id, claim.token


def killed_after(step):
    """Do a step of a transaction, and die before its commit."""

    def run(session):
        assert step(session)
        session.flush()
        raise KilledError

    return run


def messages(service):
    sent = [unit_id for _, unit_id in service.messages.sent]
    service.messages.sent.clear()
    return sent


def test_a_running_unit_steps_back_for_its_trials_and_goes_on_after_the_last(service):
    job = submit(service)
    first = service.claim(coordinator(service, job).id)
    assert (first.order.verb, first.order.payload["told"], first.order.payload["workers"]) == ("search", [], 1000)
    assert commit(service, first, asks(2))
    waiting = coordinator(service, job)
    assert (waiting.status, waiting.waits_for, waiting.token) == ("waiting", "children", None)
    assert service.job(job.id).status == "queued"
    assert [(trial.number, trial.point["widths"], trial.state) for trial in found(service, job)] == [
        (1, {"g": 1}, "queued"),
        (2, {"g": 2}, "queued"),
    ]
    one, two = (service.claim(unit_id) for unit_id in messages(service))
    assert (one.order.verb, one.order.payload["spec"]["goal"]["minimise"], one.kind) == ("trial", "size", "trial")
    assert one.order.payload["proposal"]["point"]["widths"] == {"g": 1}
    assert {item.path for item in one.inputs} == {"model/model.onnx"}
    assert states(service, job) == ["running", "running"]
    assert service.finish(one)
    assert messages(service) == []
    # A failed trial is a result, not a failed job.
    assert fail(service, two)
    assert states(service, job) == ["succeeded", "failed"]
    assert service.job(job.id).problem is None
    again = service.claim(*messages(service))
    told = again.order.payload
    assert (again.unit_id, again.attempt) == (first.unit_id, 2)
    assert [(one["number"], one["state"]) for one in told["told"]] == [(1, "succeeded"), (2, "failed")]
    assert told["told"][0]["values"]["size_bytes"] == VALUES["size_bytes"]
    assert told["told"][1]["problem"]["code"] == "runtime_limit"
    assert all(engine.Told.model_validate(one).proposal.because == "it is cheap" for one in told["told"])
    assert service.finish(again)
    assert service.job(job.id).status == "succeeded"
    assert service.events(job.id).count("trial_ended") == 2
    assert service.events(job.id).count("succeeded") == 1


def test_a_second_round_counts_on(service):
    job = spawned(service, 1)
    assert service.finish(service.claim(*messages(service)))
    assert commit(service, service.claim(*messages(service)), asks(2))
    assert [trial.number for trial in found(service, job)] == [1, 2, 3]
    for unit_id in messages(service):
        assert service.finish(service.claim(unit_id))
    assert len(messages(service)) == 1


def test_killed_before_it_has_spawned_it_begins_anew(service):
    job = submit(service)
    first = service.claim(coordinator(service, job).id)
    expire(service, first)
    assert not commit(service, first, asks(2))
    assert found(service, job) == []
    second = service.claim(first.unit_id)
    assert commit(service, second, asks(2))
    assert len(found(service, job)) == 2


def test_killed_in_the_middle_of_spawning_nothing_is_there(service):
    job = submit(service)
    claim = service.claim(coordinator(service, job).id)
    with pytest.raises(KilledError):
        service.write(killed_after(lambda session: attempts.finish(session, service.store, *held(claim), asks(2))))
    assert (coordinator(service, job).status, found(service, job), messages(service)) == ("running", [], [])
    expire(service, claim)
    assert commit(service, service.claim(claim.unit_id), asks(2))
    assert len(statuses(service, job)) == 2


def test_killed_after_spawning_the_messages_come_later_and_nothing_comes_twice(service):
    job = submit(service)
    claim = service.claim(coordinator(service, job).id)
    service.messages.on = False
    assert commit(service, claim, asks(2))
    # The worker did not hear that its commit was taken, and says it again.
    assert not commit(service, claim, asks(2))
    service.messages.on = True
    with service.database.transaction() as session:
        for unit in session.scalars(select(Unit).where(Unit.kind == "trial")):
            unit.sent_at -= timedelta(hours=1)
    once(service)
    for unit_id in messages(service):
        assert service.finish(service.claim(unit_id))
    assert states(service, job) == ["succeeded", "succeeded"]
    assert messages(service) == [claim.unit_id]


def test_killed_between_the_last_trial_and_the_continuation_the_trial_is_done_again(service):
    job = spawned(service, 1)
    claim = service.claim(*messages(service))
    with pytest.raises(KilledError):
        service.write(killed_after(lambda session: attempts.fail(session, service.store, *held(claim), RUNTIME_LIMIT)))
    assert (states(service, job), coordinator(service, job).status, messages(service)) == (["running"], "waiting", [])
    expire(service, claim)
    assert states(service, job) == ["queued"]
    again = service.claim(claim.unit_id)
    assert not service.finish(claim)
    # The end of the last trial and the continuation are one transaction; its message is lost.
    service.messages.on = False
    assert service.finish(again)
    service.messages.on = True
    assert coordinator(service, job).status == "queued"
    with service.database.transaction() as session:
        session.get_one(Unit, coordinator(service, job).id).sent_at -= timedelta(hours=1)
    messages(service)
    once(service)
    assert messages(service) == [coordinator(service, job).id]


def test_a_continuation_that_is_delivered_twice_is_done_once(service):
    job = spawned(service, 1)
    assert service.finish(service.claim(*messages(service)))
    [unit_id] = messages(service)
    both = threading.Barrier(2)

    def take():
        both.wait()
        return service.claim(unit_id)

    with ThreadPoolExecutor(2) as pool:
        claims = [pool.submit(take) for _ in range(2)]
        [claim] = [one.result() for one in claims if one.result() is not None]
    assert commit(service, claim, asks(1))
    # The first message comes again while it waits, and after it has ended.
    assert service.claim(unit_id) is None
    assert service.finish(service.claim(*messages(service)))
    last = service.claim(unit_id)
    assert service.finish(last)
    assert not service.finish(last)
    assert service.claim(unit_id) is None
    assert service.events(job.id).count("succeeded") == 1


def test_trials_that_end_at_once_continue_once(service):
    for _ in range(4):
        job = spawned(service, 3)
        claims = [service.claim(unit_id) for unit_id in messages(service)]
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(service.finish, claims))
        assert states(service, job) == ["succeeded"] * 3
        assert messages(service) == [coordinator(service, job).id]


def test_a_cancelled_search_ends_as_one(service):
    job = spawned(service, 3, max_units_in_flight=2)
    running = service.claim(messages(service)[0])
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    assert states(service, job) == ["running", "cancelled", "cancelled"]
    assert service.job(job.id).status == "cancelling"
    assert service.write(lambda session: attempts.cancelled(session, running.unit_id, running.token))
    assert (states(service, job), service.job(job.id).status) == (["cancelled"] * 3, "cancelled")
    assert coordinator(service, job).status == "cancelled"
    assert messages(service) == []


def test_a_cancel_beside_a_spawn_leaves_nothing_open(service):
    for _ in range(6):
        job = submit(service)
        claim = service.claim(coordinator(service, job).id)
        steps = [
            lambda claim=claim: commit(service, claim, asks(3)),
            lambda job=job: service.write(lambda session: jobs.cancel(session, TENANT, job.id)),
        ]
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(step) for step in steps]:
                done.result(120)
        assert service.job(job.id).status == "cancelled"
        assert not set(statuses(service, job)) & {"waiting", "queued", "running"}
        messages(service)


def test_a_job_has_only_so_many_units_in_flight(service):
    job = spawned(service, 5, max_units_in_flight=2)
    assert statuses(service, job) == ["queued", "queued", "waiting", "waiting", "waiting"]
    first, second = messages(service)
    assert service.finish(service.claim(first))
    assert statuses(service, job) == ["succeeded", "queued", "queued", "waiting", "waiting"]
    [third] = messages(service)
    # Whoever should have given the next its turn died: the reconciler does.
    with service.database.transaction() as session:
        unit = session.get_one(Unit, third)
        unit.status, unit.waits_for = UnitStatus.WAITING, "turn"
    once(service)
    assert statuses(service, job) == ["succeeded", "queued", "queued", "waiting", "waiting"]
    for unit_id in (second, third):
        assert service.finish(service.claim(unit_id))
    messages(service)
    assert statuses(service, job) == ["succeeded"] * 3 + ["queued"] * 2


def test_two_hundred_trials_starve_nobody(service):
    """Neither another tenant's job, nor an own one that comes later: few are in the queue, and tenants take turns."""
    spawned(service, 200, max_units_in_flight=4)
    other = service.upload(tenant="other")
    with service.database.transaction() as session:
        row = session.get_one(Model, other.id)
        row.state, row.inspection = ModelState.READY, session.scalars(select(Model.inspection)).first()
    spec = service.request().spec
    with service.database.transaction() as session:
        theirs = jobs.submit(session, "other", jobs.Request(other.id, None, spec, {})).job
    own = service.submit().job
    with service.database.reading() as session:
        assert session.scalar(select(func.count()).where(Unit.status == "queued", Unit.kind == "trial")) == 4
    order = []
    for _ in range(6):
        with service.database.transaction() as session:
            waiting = session.scalars(select(Unit.id).where(Unit.status == "queued", Unit.queue == "run.cpu")).first()
            claim = queue.claim_next(session, waiting, worker_id="w", lease_s=30, queues=["run.cpu"])
        order.append(claim.job_id)
        assert service.finish(claim) if claim.tenant_id == TENANT else True
    assert theirs.id in order[:2]
    assert own.id in order


def test_what_the_jobs_time_does_not_reach_is_told_and_the_search_goes_on_with_the_rest(service):
    job = spawned(service, 4, max_units_in_flight=2, max_runtime_s=100.0)
    deadline = service.job(job.id).deadline
    assert timedelta(seconds=90) < deadline - service.job(job.id).created_at < timedelta(seconds=200)
    running = service.claim(messages(service)[0])
    assert running.runtime_s <= 100.0
    with service.database.transaction() as session:
        session.get_one(Job, job.id).deadline -= timedelta(seconds=300)
    once(service)
    assert states(service, job) == ["running", "failed", "failed", "failed"]
    assert {trial.problem["code"] for trial in found(service, job)[1:]} == {"job_deadline"}
    assert coordinator(service, job).status == "waiting"
    messages(service)
    assert service.finish(running)
    again = service.claim(*messages(service))
    # It has its own time to make the best of what there is.
    assert again.runtime_s > 100.0
    assert service.finish(again)
    assert service.job(job.id).status == "succeeded"


def test_processor_time_is_the_whole_jobs(service):
    job = spawned(service, 3, max_units_in_flight=1, max_cpu_s=10.0)
    claim = service.claim(*messages(service))
    assert service.write(lambda session: attempts.spent(session, claim.unit_id, claim.token, cpu_s=11.0))
    once(service)
    assert states(service, job) == ["running", "failed", "failed"]
    assert found(service, job)[2].problem["code"] == "job_cpu_limit"
    assert service.finish(claim)
    assert messages(service)[-1] == coordinator(service, job).id


@pytest.mark.parametrize(
    "child",
    [
        {"kind": "run", "payload": {}},
        {"kind": "merge", "payload": {}},
        {"kind": "unheard_of", "payload": {}},
        {"kind": "search", "payload": {}},
        {"kind": "trial", "payload": {"proposal": {"point": {"widths": {"g": 0}}, "because": "it is cheap"}}},
        {"kind": "trial", "payload": {"proposal": {"point": {}, "because": "", "inherits": 7}}},
        {"kind": "trial", "payload": {}},
        {"kind": "variants", "payload": {"part": ""}},
        {"kind": "part", "payload": {"targets": [7]}},
    ],
)
def test_a_coordinator_cannot_ask_for_what_it_may_not(service, child):
    job = submit(service)
    claim = service.claim(coordinator(service, job).id)
    wrong = Result(Answer(StepBack(spawn=[ask(), Child(**child)], state={})))
    assert commit(service, claim, wrong)
    assert (service.job(job.id).status, service.job(job.id).problem["code"]) == ("failed", "output_invalid")
    assert found(service, job) == []


def test_a_trial_has_no_more_than_its_job(service):
    job = spawned(service, 1)
    with service.database.reading() as session:
        unit = session.scalars(select(Unit).where(Unit.kind == "trial")).one()
    limits = job.spec["limits"]
    assert (unit.max_runtime_s, unit.max_memory_mb) == (limits["max_runtime_s"], limits["max_memory_mb"])


def test_a_unit_for_a_class_of_machines_waits_for_one(service):
    beat(service, "wrk_1", (CPU,))
    job = submit(service)
    elsewhere = "cpu/amx_int8"
    assert commit(service, service.claim(coordinator(service, job).id), asks(1, target_class=elsewhere))
    [unit_id] = messages(service)

    def take(classes):
        with service.database.transaction() as session:
            more = {"worker_id": "w", "lease_s": 30, "queues": ["run.cpu"], "classes": classes}
            return queue.claim_next(session, unit_id, **more)

    assert take([]) is None
    assert take(["cpu/avx2"]) is None
    with service.database.transaction() as session:
        session.get_one(Unit, unit_id).pending_until -= timedelta(days=1)
    claim = take([elsewhere])
    assert claim.unit_id == unit_id


def test_nobody_of_the_class_is_told_in_the_trial(service):
    beat(service, "wrk_1", (CPU,))
    job = submit(service)
    assert commit(service, service.claim(coordinator(service, job).id), asks(1, target_class="cpu/amx_int8"))
    with service.database.transaction() as session:
        session.get_one(Unit, messages(service)[0]).pending_until -= timedelta(days=1)
    once(service)
    [trial] = found(service, job)
    assert "`cpu/amx_int8`" in trial.problem["message"]
    assert messages(service) == [coordinator(service, job).id]


def test_a_kind_of_a_later_version_is_left_to_its_workers(service):
    job = service.submit().job
    unit_id = service.messages.take()
    with service.database.transaction() as session:
        session.get_one(Unit, unit_id).kind = "unheard_of"
    assert service.claim(unit_id) is None
    later = service.submit().job
    with service.database.transaction() as session:
        claim = queue.claim_next(session, unit_id, worker_id="w", lease_s=30, queues=["run.cpu"])
    assert (claim.job_id, service.job(job.id).status) == (later.id, "queued")


def test_a_candidate_counts_as_named_while_its_trial_is_kept(service, tmp_path, monkeypatch, postgres_programs):
    monkeypatch.setenv("PATH", f"{postgres_programs}:{os.environ['PATH']}")
    job = spawned(service, 2)
    for unit_id in messages(service):
        assert service.finish(service.claim(unit_id))
    one, two = found(service, job)
    # Both have made the same bytes.
    assert one.artifact_digest == two.artifact_digest is not None
    files = service.stored()
    place = Place(service.database, service.store, service.settings.data_dir)
    retention.apply(place, service.settings)
    service.write(lambda session: artifacts.discard(session, service.store, TENANT, one.artifact_digest))
    assert service.stored() == files
    kept = backup.take(service.database, service.store, tmp_path / "backup")
    assert not kept.damaged
    assert {f"{blob.tenant_id}/{blob.sha256}" for blob in kept.blobs} == files

    def drop(number):
        service.write(lambda session: trials.drop(session, service.store, trials.get(session, TENANT, job.id, number)))

    drop(1)
    assert service.stored() == files
    drop(2)
    assert len(service.stored()) == len(files) - 1
    assert [trial.values["size_bytes"] for trial in found(service, job)] == [100, 100]
    with pytest.raises(NotFoundError):
        service.read(lambda session: trials.get(session, "other", job.id, 1))


def test_a_coordinator_drops_candidates_as_it_goes_on(service):
    job = spawned(service, 1)
    assert service.finish(service.claim(*messages(service)))
    back = StepBack(spawn=[ask()], state={}, drop=[1, 2, 99])
    assert commit(service, service.claim(*messages(service)), Result(Answer(back)))
    assert [trial.artifact_digest for trial in found(service, job)] == [None, None]
    with pytest.raises(ConflictError):
        service.write(lambda session: trials.drop(session, service.store, trials.get(session, TENANT, job.id, 2)))


def test_trials_go_with_their_job(service):
    job = spawned(service, 2)
    for unit_id in messages(service):
        assert service.finish(service.claim(unit_id))
    assert service.finish(service.claim(*messages(service)))
    with service.database.transaction() as session:
        session.get_one(Job, job.id).finished_at -= timedelta(days=10)
    settings = service.settings.model_copy(update={"keep_jobs_days": 1})
    removed = retention.apply(Place(service.database, service.store, service.settings.data_dir), settings)
    assert removed["jobs"] == 1
    with service.database.reading() as session:
        assert [session.scalar(select(func.count()).select_from(table)) for table in (Job, Trial)] == [0, 0]
        assert session.scalar(select(func.count()).where(Unit.job_id.is_not(None))) == 0
        assert session.scalar(select(func.count()).select_from(Artifact)) == 1


def test_a_crashed_trial_is_tried_again_and_then_a_result(service):
    job = spawned(service, 1)
    [unit_id] = messages(service)
    for _ in range(int(service.settings.max_crashes) + 1):
        claim = service.claim(unit_id)
        service.write(
            lambda session, c=claim: attempts.crashed(session, service.store, c.unit_id, c.token, service.settings)
        )
    assert [(trial.state, trial.problem["code"]) for trial in found(service, job)] == [
        (TrialState.FAILED, "process_crashed")
    ]
    assert service.job(job.id).problem is None
    assert messages(service)[-1] == coordinator(service, job).id


def test_what_a_trial_tells_of_its_steps_is_not_the_jobs(service):
    job = spawned(service, 1)
    claim = service.claim(*messages(service))
    before = service.job(job.id).steps
    told = [{"type": "step_started", "step": 0, "pass": "simplify"}, {"type": "progress", "fraction": 0.5}]
    assert service.write(lambda session: queue.progress(session, claim.unit_id, claim.token, told))
    assert service.job(job.id).steps == before
    assert "step_started" not in service.events(job.id)
