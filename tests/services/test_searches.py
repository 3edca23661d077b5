"""A search as a job of many units: turns, parts of the library, candidates, the front, pauses, fairness, picked points."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

import engine
from models import Job, LibraryPiece, Model, ModelState, Unit, Worker
from services import attempts, catalog, fronts, jobs, pauses, queue, reconcile, retention, searches, trials
from services.claims import Result
from services.errors import ConflictError, NotFoundError, RejectedError
from services.problems import RUNTIME_LIMIT
from services.retention import Place
from services.unit_kinds import read_answer

from .conftest import TENANT
from .test_workers import CPU, beat

SPEC = {"kind": "search", "goal": {"minimise": "size"}, "space": {"train": False}}
CLASS = "cpu/avx2+avx512f"


def request(service, model=None, dataset=None, judge=None, **fields):
    model = model or service.ready_model()
    spec = engine.read_spec({**SPEC, **fields})
    ids = {"dataset_id": dataset and dataset.id, "judge_id": judge and judge.id}
    return jobs.Request(model.id, spec=spec, labels={}, cache="refuse", **ids)


def submit(service, model=None, **fields):
    """A search whose coordinator's message is taken."""
    job = service.submit(request(service, model, **fields)).job
    service.messages.sent.clear()
    return job


def coordinator(service, job):
    return service.read(lambda session: searches.coordinator_of(session, session.get_one(Job, job.id)))


def take(service, unit_id, classes=(CLASS,), queues=("run.cpu",), worker="wrk_1"):
    with service.database.transaction() as session:
        return queue.claim(session, unit_id, worker_id=worker, lease_s=30, queues=queues, classes=classes)


def turn(service, job, **answer):
    """Have the coordinator take a turn; gives what it was told."""
    claim = take(service, coordinator(service, job).id)
    messages(service)
    assert commit(service, claim, answer)
    return claim.order.payload


def commit(service, claim, answer):
    result = Result(read_answer(claim, answer))
    return service.write(lambda session: attempts.finish(session, service.store, claim.unit_id, claim.token, result))


def proposals(*sizes, **more):
    found = [{"point": {"widths": {"g": size}}, "because": "it is cheap", **more} for size in sizes]
    return {"do": "try_proposals", "proposals": found}


def messages(service):
    sent = [unit_id for _, unit_id in service.messages.sent]
    service.messages.sent.clear()
    return sent


def run_trials(service, *values):
    """Do the trials that are queued, one after the other; gives what their processes were told."""
    claims = []
    for value in values:
        [unit_id, *_] = messages(service)
        claims.append(take(service, unit_id))
        assert service.finish(claims[-1], **value)
    return claims


def quality(drop):
    return [
        {
            "metric": "top1",
            "original": 0.9,
            "compressed": 0.9 - drop,
            "difference": -drop,
            "interval": {"low": -drop, "high": -drop, "confidence": 0.95},
            "standard_error": 0.0,
            "samples": 20,
        }
    ]


def searched(service, **fields):
    """A search with four trials, of which two are on the front, that waits for its last turn."""
    job = submit(service, **fields)
    turn(service, job, **proposals(1, 2, 3, 4))
    run_trials(
        service,
        {"size_bytes": 50, "quality": quality(0.05)},
        {"size_bytes": 90, "quality": quality(0.01)},
        {"size_bytes": 95, "quality": quality(0.02)},
        {"size_bytes": 60, "quality": quality(0.06)},
    )
    return job


def ended(service, **fields):
    """A search that has ended with its second trial."""
    job = searched(service, **fields)
    turn(service, job, do="finish", trial=2, because="Nothing is left.")
    assert service.finish(take(service, coordinator(service, job).id), chosen=2)
    messages(service)
    return job


def found(service, job):
    return service.read(lambda session: trials.list_trials(session, TENANT, job.id))


def once(service):
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)


def set_job(service, job, **values):
    def change(session):
        row = session.get_one(Job, job.id)
        for name, value in values.items():
            setattr(row, name, value)

    service.write(change)


def test_parts_of_the_library_are_measured_once_and_read_by_later_searches(service):
    model = service.ready_model()
    job = submit(service, model)
    assert turn(service, job, do="measure_variants", parts=["conv", "block"])["pieces"] == {}
    for part in ("conv", "block"):
        [unit_id] = messages(service)
        claim = take(service, unit_id)
        assert (claim.order.verb, claim.order.payload["part"]) == ("variants", part)
        assert commit(service, claim, {"piece": {"damage": 0.1, "part": part}})
    known = {part: {"damage": 0.1, "part": part} for part in ("conv", "block")}
    assert turn(service, job, **proposals(1))["pieces"] == known

    def told(classes=(CLASS,), **fields):
        other = submit(service, **{"model": model, **fields})
        return take(service, coordinator(service, other).id, classes).order.payload["pieces"]

    assert told() == known
    # What was measured of another network, on other machines, or of another space says nothing of this one.
    assert told(model=None) == told(classes=["cpu/avx2"]) == told(space={"widths": [0.5]}) == {}
    # What candidates train is not what parts are measured by.
    assert told(goal={"minimise": "latency"}, space={"train": False, "flip": True}) == known


def test_a_network_that_is_deleted_takes_its_library_along(service):
    model = service.ready_model()
    job = submit(service, model)
    turn(service, job, do="measure_variants", parts=["conv"])
    assert commit(service, take(service, *messages(service)), {"piece": {}})
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    assert len(service.read(lambda session: session.scalars(select(LibraryPiece)).all())) == 1
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))
    assert service.read(lambda session: session.scalars(select(LibraryPiece)).all()) == []


def test_a_library_that_nobody_reads_is_forgotten(service):
    job = submit(service)
    turn(service, job, do="measure_variants", parts=["conv"])
    assert commit(service, take(service, *messages(service)), {"piece": {}})
    settings = service.settings.model_copy(update={"keep_cache_days": 1})
    place = Place(service.database, service.store, service.settings.data_dir)
    assert retention.count(place, settings)["library_pieces"] == 0
    with service.database.transaction() as session:
        session.scalars(select(LibraryPiece)).one().used_at -= timedelta(days=2)
    assert retention.apply(place, settings)["library_pieces"] == 1


def test_a_part_that_cannot_be_measured_says_nothing_and_is_not_asked_for_again(service):
    job = submit(service)
    turn(service, job, do="measure_variants", parts=["conv"])
    claim = take(service, *messages(service))
    assert service.write(
        lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, RUNTIME_LIMIT)
    )
    told = turn(service, job, do="measure_variants", parts=["conv"])
    assert told["pieces"] == {"conv": {}}
    assert (service.job(job.id).status, service.job(job.id).problem["code"]) == ("failed", "output_invalid")


def test_a_candidate_sees_no_sample_that_judges_and_goes_on_from_the_network_that_it_inherits(service):
    data, judge = service.ready_dataset(), service.ready_dataset()
    job = submit(service, dataset=data, judge=judge)
    first = take(service, coordinator(service, job).id)
    assert {item.path.split("/")[0] for item in first.inputs} == {"model", "data", "judge"}
    assert commit(service, first, proposals(1))
    [claim] = run_trials(service, {})
    assert {item.path.split("/")[0] for item in claim.inputs} == {"model", "data"}
    turn(service, job, **proposals(2, inherits=1))
    heir = take(service, *messages(service))
    [inherited] = [item for item in heir.inputs if item.path.startswith("inherited/")]
    assert inherited.path == "inherited/model.onnx"
    assert found(service, job)[0].artifact_digest is not None


@pytest.mark.parametrize(
    "answer",
    [
        proposals(2, inherits=2),
        {**proposals(2, inherits=1), "drop": [1]},
        {"do": "finish", "trial": 7, "because": ""},
    ],
)
def test_a_turn_cannot_go_on_from_a_network_that_is_not_there(service, answer):
    job = submit(service)
    turn(service, job, **proposals(1))
    run_trials(service, {})
    turn(service, job, **answer)
    assert service.job(job.id).problem["code"] == "output_invalid"
    assert len(found(service, job)) == 1


def test_the_last_turn_has_the_network_that_the_search_ends_with(service):
    job = searched(service)
    turn(service, job, do="finish", trial=2, because="Nothing is left.")
    [unit_id] = messages(service)
    assert service.job(job.id).status == "queued"
    last = take(service, unit_id)
    assert [item.path for item in last.inputs if item.path.startswith("trial/")] == ["trial/model.onnx"]
    assert service.finish(last, chosen=2)
    kept = service.job(job.id)
    assert (kept.status, kept.summary["search"]["chosen"], kept.verdict) == ("succeeded", 2, "none")
    output = service.read(lambda session: session.get_one(Model, job.output_model_id))
    assert (output.state, output.parent_id) == ("ready", job.model_id)
    # What nobody has a use for is given up: the front is kept.
    assert [trial.artifact_digest is not None for trial in found(service, job)] == [True, True, False, False]


def test_a_turn_that_asks_for_the_same_network_again_ends_the_search(service):
    job = searched(service)
    for _ in range(2):
        turn(service, job, do="finish", trial=2, because="Nothing is left.")
    assert service.job(job.id).problem["code"] == "output_invalid"
    # The front can be picked from all the same.
    assert [trial.artifact_digest is not None for trial in found(service, job)] == [True, True, False, False]


def test_all_units_of_a_search_are_of_the_class_that_took_its_first_turn(service):
    job = submit(service)
    turn(service, job, **proposals(1, 2))
    assert coordinator(service, job).target_class == CLASS
    [unit_id] = messages(service)
    assert take(service, unit_id, ["cpu/avx2"]) is None
    assert take(service, unit_id, [CLASS, "cpu/avx2"]) is not None


def test_a_search_trains_only_where_somebody_of_its_class_does(service):
    trains = {**CPU, "training": {"available": True}}
    plain = submit(service, space={"train": True})
    told = take(service, coordinator(service, plain).id).order.payload
    assert told["spec"]["space"]["train"] is False
    assert "PyTorch" in service.job(plain.id).warnings[-1]
    beat(service, "wrk_1", (trains,))
    with service.database.transaction() as session:
        session.get_one(Worker, "wrk_1").queues = ["run.cpu", "run.cpu.train"]
    job = submit(service, space={"train": True})
    assert coordinator(service, job).queue == "run.cpu.train"
    claim = take(service, coordinator(service, job).id, queues=("run.cpu", "run.cpu.train"))
    assert claim.order.payload["spec"]["space"]["train"] is True
    ask = proposals(1, 2)
    ask["proposals"][1] |= {"train_s": 5.0, "level": "short"}
    set_job(service, job, max_units_in_flight=2)
    assert commit(service, claim, ask)
    assert [name for name, _ in service.messages.sent] == ["run.cpu", "run.cpu.train"]


def live(service, count):
    for number in range(count):
        beat(service, f"wrk_{number}", (CPU,), concurrency=1)
    with service.database.transaction() as session:
        for worker in session.scalars(select(Worker)):
            worker.target_classes, worker.queues = [CLASS], ["run.cpu"]


def statuses(service, job):
    with service.database.reading() as session:
        asked = select(Unit.status).where(Unit.job_id == job.id, Unit.kind == "trial").order_by(Unit.position)
        return list(session.scalars(asked))


def test_as_many_trials_are_in_flight_as_there_are_workers_of_the_class(service):
    job = submit(service)
    turn(service, job, **proposals(1, 2, 3, 4))
    # Nobody has told of itself yet: one.
    assert statuses(service, job) == ["queued", "waiting", "waiting", "waiting"]
    live(service, 3)
    once(service)
    assert statuses(service, job) == ["queued", "queued", "queued", "waiting"]
    with service.database.transaction() as session:
        session.get_one(Worker, "wrk_2").target_classes = ["cpu/avx2"]
        assert searches.most_in_flight(session, session.get_one(Job, job.id)) == 2


def other_tenants_job(service):
    other = service.upload(tenant="other")
    with service.database.transaction() as session:
        row = session.get_one(Model, other.id)
        row.state, row.inspection = ModelState.READY, session.scalars(select(Model.inspection)).first()
    spec = engine.read_spec({"recipe": {"passes": [{"type": "simplify"}]}})
    with service.database.transaction() as session:
        return jobs.submit(session, "other", jobs.Request(other.id, None, spec, {})).job


def test_trials_of_one_tenant_do_not_starve_anothers_jobs_nor_its_own(service):
    """Two searches of a tenant over two workers; another tenant's job is next, and an own later one has its turn."""
    live(service, 2)
    one, two = submit(service), submit(service)
    for job in (one, two):
        turn(service, job, **proposals(*range(1, 13)))
    assert statuses(service, one).count("queued") == statuses(service, two).count("queued") == 2
    theirs, own = other_tenants_job(service), service.submit().job

    def next_claim(worker):
        with service.database.transaction() as session:
            waiting = session.scalars(select(Unit.id).where(Unit.status == "queued", Unit.queue == "run.cpu")).first()
            more = {"worker_id": worker, "lease_s": 30, "queues": ["run.cpu"], "classes": [CLASS]}
            return queue.claim_next(session, waiting, **more)

    running = [next_claim("wrk_0")]
    order = [running[0].job_id]
    # Both workers are never idle: as soon as one ends a unit it takes the next one.
    for _ in range(8):
        running.append(next_claim("wrk_1"))
        order.append(running[-1].job_id)
        ends = running.pop(0)
        if ends.tenant_id == TENANT:
            assert service.finish(ends)
    assert theirs.id in order[:2]
    assert own.id in order
    assert {one.id, two.id} <= set(order)


def test_a_lost_worker_costs_one_trial(service):
    job = submit(service)
    set_job(service, job, max_units_in_flight=2)
    turn(service, job, **proposals(1, 2))
    lost, kept = (take(service, unit_id) for unit_id in messages(service))
    with service.database.transaction() as session:
        session.get_one(Unit, lost.unit_id).lease_until = session.get_one(Unit, lost.unit_id).created_at
    once(service)
    assert service.finish(kept)
    assert not service.finish(lost)
    assert [str(trial.state) for trial in found(service, job)] == ["queued", "succeeded"]
    assert service.finish(take(service, lost.unit_id))
    assert service.events(job.id).count("trial_ended") == 2
    assert [one["state"] for one in turn(service, job, **proposals(3))["told"]] == ["succeeded"] * 2


def test_what_a_search_tells_of_its_trials(service):
    job = submit(service)
    turn(service, job, **proposals(1))
    assert service.job(job.id).progress["message"] == "0 candidates tried"
    claim = take(service, *messages(service))
    assert service.job(job.id).progress["message"] == "0 candidates tried, 1 being tried"
    assert service.finish(claim, size_bytes=77)
    told = service.read(lambda session: jobs.events(session, TENANT, job.id))
    said = {event.type: event.data for event in told if event.type.startswith("trial_")}
    assert list(said) == ["trial_queued", "trial_started", "trial_ended"]
    assert said["trial_queued"] == {"number": 1, "level": "refit", "because": "it is cheap", "predicted": None}
    assert said["trial_ended"] == {
        "number": 1,
        "state": "succeeded",
        "size_bytes": 77,
        "latency_ratio": 0.5,
        "latency_low": 0.4,
        "latency_high": 0.6,
        "quality": [],
    }


def pause(service, job):
    return service.write(lambda session: pauses.pause(session, TENANT, job.id))


def resume(service, job):
    return service.write(lambda session: pauses.resume(session, TENANT, job.id))


def test_a_paused_search_ends_what_runs_and_queues_nothing(service):
    job = submit(service)
    set_job(service, job, max_units_in_flight=2)
    turn(service, job, **proposals(1, 2, 3))
    first, second = messages(service)
    running = take(service, first)
    assert pause(service, job).paused_at == pause(service, job).paused_at
    assert statuses(service, job) == ["running", "waiting", "waiting"]
    assert take(service, second) is None
    assert service.finish(running)
    once(service)
    assert (statuses(service, job), messages(service)) == (["succeeded", "waiting", "waiting"], [])
    resume(service, job)
    assert statuses(service, job) == ["succeeded", "queued", "queued"]
    for unit_id in messages(service):
        assert service.finish(take(service, unit_id))
    assert len(turn(service, job, **proposals(4))["told"]) == 3


def test_the_coordinator_of_a_paused_search_waits_too(service):
    job = submit(service)
    pause(service, job)
    assert take(service, coordinator(service, job).id) is None
    resume(service, job)
    claim = take(service, *messages(service))
    pause(service, job)
    # It steps back while the search is paused; its trial fails its attempt in the same way.
    assert commit(service, claim, proposals(1))
    assert statuses(service, job) == ["waiting"]
    resume(service, job)
    claim = take(service, *messages(service))
    pause(service, job)
    assert service.write(
        lambda session: attempts.give_back(
            session, service.store, claim.unit_id, claim.token, service.settings, counted=False
        )
    )
    assert (statuses(service, job), [str(one.state) for one in found(service, job)]) == (["waiting"], ["queued"])
    resume(service, job)
    assert service.finish(take(service, *messages(service)))
    # The continuation waits as well.
    [unit_id] = messages(service)
    pause(service, job)
    assert take(service, unit_id) is None
    resume(service, job)
    assert messages(service) == [unit_id]


def test_a_search_that_is_paused_before_its_network_is_made_waits_for_both(service):
    making = service.submit().job
    made = service.read(lambda session: session.get_one(Model, making.output_model_id))
    job = submit(service, made)
    pause(service, job)
    assert service.finish(service.claim(service.read(lambda session: session.scalars(
        select(Unit.id).where(Unit.job_id == making.id)).one())))  # fmt: skip
    assert (messages(service), coordinator(service, job).waits_for) == ([], "turn")
    resume(service, job)
    assert messages(service) == [coordinator(service, job).id]
    assert take(service, coordinator(service, job).id).order.payload["told"] == []


def test_time_that_a_search_is_paused_does_not_count(service):
    job = submit(service)
    set_job(service, job, max_units_in_flight=2)
    turn(service, job, **proposals(1, 2))
    messages(service)
    pause(service, job)
    hour = timedelta(hours=1)
    before = service.job(job.id).deadline
    with service.database.transaction() as session:
        row = session.get_one(Job, job.id)
        row.paused_at, row.started_at, row.deadline = row.paused_at - hour, row.started_at - hour, before - hour
    once(service)
    # Its deadline was in the pause: nothing of it is over.
    assert statuses(service, job) == ["waiting", "waiting"]
    resume(service, job)
    row = service.job(job.id)
    assert abs(row.deadline - before) < timedelta(minutes=1)
    assert service.read(lambda session: searches.elapsed_s(session, session.get_one(Job, job.id))) < 60.0
    for unit_id in messages(service):
        assert service.finish(take(service, unit_id))
    assert turn(service, job, **proposals(3))["elapsed_s"] < 60.0


def test_a_paused_search_is_cancelled_as_one(service):
    job = submit(service)
    turn(service, job, **proposals(1, 2))
    pause(service, job)
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    assert (service.job(job.id).status, statuses(service, job)) == ("cancelled", ["cancelled"] * 2)
    for step in (pause, resume):
        with pytest.raises(ConflictError, match="ended: it is cancelled"):
            step(service, job)


def test_only_a_search_that_goes_on_pauses_and_only_a_paused_one_goes_on(service):
    plain = service.submit().job
    with pytest.raises(ConflictError, match="Only a search"):
        pause(service, plain)
    job = submit(service)
    with pytest.raises(ConflictError, match="not paused"):
        resume(service, job)
    with pytest.raises(NotFoundError):
        service.write(lambda session: pauses.pause(session, "other", job.id))


def test_a_budget_that_a_unit_may_not_run_is_refused(service):
    with pytest.raises(RejectedError, match=r"600 s.*max_runtime_s ends it after 300 s"):
        submit(service, limits={"max_runtime_s": 300})
    assert service.job(submit(service, budget={"max_seconds": 60}).id).max_runtime_s == 60.0


def front(service, job, tenant=TENANT):
    return service.read(lambda session: fronts.front(session, tenant, job.id))


def pick(service, job, number, **more):
    return service.write(lambda session: fronts.pick(session, TENANT, job.id, fronts.Pick(number, **more))).job


def test_the_front_while_a_search_goes_on_and_afterwards(service):
    job = searched(service)
    now = front(service, job)
    assert ([one.number for one in now.trials], now.is_final, now.chosen) == ([1, 2], False, None)
    turn(service, job, do="finish", trial=2, because="Nothing is left.")
    assert service.finish(take(service, coordinator(service, job).id), chosen=2)
    then = front(service, job)
    assert ([one.number for one in then.trials], then.is_final, then.chosen) == ([1, 2], True, 2)
    with pytest.raises(NotFoundError):
        front(service, job, "other")
    with pytest.raises(ConflictError, match="Only a search"):
        front(service, service.submit().job)


def test_a_search_that_an_earlier_result_answers_has_that_ones_front(service):
    beat(service, "wrk_1", (CPU,))
    job = ended(service)
    asked = request(service, service.read(lambda session: session.get_one(Model, job.model_id)))
    again = service.submit(replace(asked, cache="use")).job
    assert (again.cached_from, again.status) == (job.id, "succeeded")
    assert [(one.job_id, one.number) for one in front(service, again).trials] == [(job.id, 1), (job.id, 2)]
    assert pick(service, again, 2).model_id == job.model_id


def test_a_point_is_made_real_from_its_network(service):
    data, judge = service.ready_dataset(), service.ready_dataset()
    gates = [{"metric": "size_bytes", "rule": "max", "value": 1000}]
    job = ended(service, dataset=data, judge=judge, goal={"minimise": "size", "subject_to": gates})
    made = pick(service, job, 1)
    assert (made.kind, made.model_id, made.dataset_id, made.judge_id) == ("compress", job.model_id, data.id, judge.id)
    assert [gate["metric"] for gate in made.spec["gates"]] == ["size_bytes"]
    student = service.read(lambda session: session.get_one(Model, made.student_id))
    assert (student.name, student.state, student.parent_id) == ("net (trial 1)", "ready", job.model_id)
    assert student.artifact_digest == found(service, job)[0].artifact_digest
    # Its network has one name, however often it is picked.
    assert pick(service, job, 1, gates=[]).student_id == student.id
    claim = take(service, messages(service)[0])
    assert "student/model.onnx" in {item.path for item in claim.inputs}


def test_a_point_whose_network_is_gone_is_made_by_its_recipe(service):
    job = ended(service)
    service.write(lambda session: trials.drop(session, service.store, trials.get(session, TENANT, job.id, 1)))
    with pytest.raises(ConflictError, match="its recipe comes with the search's end"):
        pick(service, job, 1)
    with service.database.transaction() as session:
        trials.get(session, TENANT, job.id, 1).recipe = [{"type": "simplify"}, {"type": "float16"}]
    made = pick(service, job, 1)
    assert ([step["type"] for step in made.spec["recipe"]["passes"]], made.student_id) == (
        ["simplify", "float16"],
        None,
    )


def test_what_is_no_point_of_the_front_cannot_be_picked(service):
    job = ended(service)
    with pytest.raises(NotFoundError, match="no point of the front"):
        pick(service, job, 3)
    with pytest.raises(NotFoundError, match="no such trial"):
        pick(service, job, 99)
    going_on = submit(service)
    turn(service, going_on, **proposals(1))
    with pytest.raises(ConflictError, match="only one that succeeded"):
        pick(service, going_on, 1)


def test_a_search_is_kept_while_a_picked_job_names_its_network_and_goes_with_it(service):
    job = ended(service)
    made = pick(service, job, 1)
    assert service.finish(take(service, *messages(service)))
    old = timedelta(days=10)
    for each in (job, made):
        set_job(service, each, finished_at=service.job(each.id).finished_at - old)
    place = Place(service.database, service.store, service.settings.data_dir)
    set_job(service, made, finished_at=service.job(made.id).finished_at + old)
    settings = service.settings.model_copy(update={"keep_jobs_days": 1})
    assert retention.apply(place, settings)["jobs"] == 0
    set_job(service, made, finished_at=service.job(made.id).finished_at - old)
    assert retention.apply(place, settings)["jobs"] == 2
    assert service.read(lambda session: session.scalars(select(Unit.id).where(Unit.job_id.is_not(None))).all()) == []
