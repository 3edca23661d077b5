"""A profile over several targets: a unit for each provider, one report in the end, whatever became of one of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

import engine
from models import Unit
from services import artifacts, attempts, catalog, jobs, queue, reconcile
from services.claims import Answer, Result
from services.errors import ConflictError, InvalidError
from services.problems import RUNTIME_LIMIT

from .conftest import FACTS, TENANT
from .test_workers import CPU, OPENVINO, beat

TARGETS = [{"provider": "cpu"}, {"provider": "openvino"}, {"provider": "cpu", "threads": 2}]


def measured(provider):
    interval = {"low": 0.9, "high": 1.1}
    return {
        "environment": {"cpu": "x", "cpu_flags": [], "cores": 2, "onnxruntime": "1", "provider": provider,
                        "python": "3.11", "system": "Linux"},
        "latency": dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), 2.0) | {"samples": 9, "dropped": 0},
        "noise_floor": interval,
        "stable": True,
        "comparison": None,
        "throughput": [],
        "memory": {"peak_rss_bytes": 1, "load_ms": 1.0, "first_run_ms": 1.0},
        "baseline_memory": None,
        "by_type": [],
        "slowest": [],
        "placement": {"nodes_by_provider": {provider: 1}, "nodes": [], "fallbacks": [], "fallback_share": 0.0},
    }  # fmt: skip


def report(indices, targets=TARGETS):
    return engine.ProfileReport.model_validate(
        {
            "summary": f"{len(indices)} targets.",
            "model": FACTS,
            "baseline": None,
            "targets": [
                {
                    "index": index,
                    "target": targets[index],
                    "measured": measured(targets[index]["provider"]),
                    "seconds": 1.0,
                }
                for index in indices
            ],
            "verdict": {"outcome": "none"},
            "samples": 0,
            "seconds": 1.0,
        }
    )


def finish(service, claim, told):
    """Commit a report as a worker does."""
    names = ("report.json", "report.md")
    writers = {name: service.store.writer(TENANT, limit=1 << 20) for name in names}
    try:
        for name, writer in writers.items():
            writer.write(f"{name} {claim.unit_id}".encode())
            writer.finish()
        result = Result(Answer(told, "reports"), (), tuple(artifacts.NewFile(name, writers[name]) for name in names))
        with service.database.transaction() as session:
            return attempts.finish(session, service.store, claim.unit_id, claim.token, result)
    finally:
        for writer in writers.values():
            writer.abort()


@pytest.fixture
def ask(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    model = service.ready_model()

    def ask(targets=TARGETS, **fields):
        names = {name: fields.pop(name) for name in ("baseline_id",) if name in fields}
        spec = engine.read_spec({"kind": "profile", "targets": targets, **fields})
        return service.submit(jobs.Request(model.id, None, spec, {}, **names)).job

    return ask


def messages(service):
    found = dict(service.messages.sent)
    service.messages.sent.clear()
    return found


def units(service, job):
    with service.database.reading() as session:
        found = session.scalars(select(Unit).where(Unit.job_id == job.id))
        return {(unit.kind, unit.queue): unit.status for unit in found}


def test_one_provider_is_one_unit_and_makes_no_network(service, ask):
    job = ask([{"provider": "cpu"}, {"provider": "cpu", "threads": 2}])
    assert units(service, job) == {("run", "run.cpu"): "queued"}
    assert (job.output_model_id, job.cache_key) == (None, None)
    claim = service.claim()
    assert (claim.kind, claim.order.payload["targets"], claim.order.payload["spec"]["kind"]) == ("run", [], "profile")
    assert finish(service, claim, report([0, 1], [{"provider": "cpu"}] * 2))
    done = service.job(job.id)
    assert (done.status, done.verdict) == ("succeeded", "none")
    assert [step["status"] for step in done.steps] == ["measured", "measured"]
    assert done.steps[0]["latency"]["p99_ms"] == 2.0
    assert len(service.read(lambda session: jobs.report(session, TENANT, job.id))) == 2


def test_each_provider_is_a_unit_in_its_queue_and_the_last_to_end_has_the_results_put_together(service, ask):
    job = ask()
    assert units(service, job) == {
        ("part", "run.cpu"): "queued",
        ("part", "run.openvino"): "queued",
        ("merge", "inspect"): "waiting",
    }
    sent = messages(service)
    cpu, openvino = service.claim(sent["run.cpu"]), service.claim(sent["run.openvino"])
    assert (cpu.order.payload["targets"], openvino.order.payload["targets"]) == ([0, 2], [1])
    assert finish(service, openvino, report([1]))
    half = service.job(job.id)
    assert (half.status, [step["status"] for step in half.steps]) == ("running", ["waiting", "measured", "waiting"])
    assert messages(service) == {}
    assert finish(service, cpu, report([0, 2]))
    # Nothing of it runs until somebody takes the last unit.
    assert service.job(job.id).status == "queued"
    merge = service.claim(messages(service)["inspect"])
    assert (merge.kind, merge.inputs, merge.order.payload["failures"]) == ("merge", (), [])
    assert [[target["index"] for target in one["targets"]] for one in merge.order.payload["reports"]] == [[0, 2], [1]]
    assert finish(service, merge, report([0, 1, 2]))
    done = service.job(job.id)
    assert (done.status, len(done.summary["targets"])) == ("succeeded", 3)
    assert service.events(job.id).count("succeeded") == 1
    with service.database.reading() as session:
        assert not [unit for unit in session.scalars(select(Unit)) if unit.result is not None]


def test_a_target_that_fails_is_told_and_the_others_count(service, ask):
    job = ask()
    sent = messages(service)
    openvino = service.claim(sent["run.openvino"])
    service.write(
        lambda session: attempts.fail(session, service.store, openvino.unit_id, openvino.token, RUNTIME_LIMIT)
    )
    assert service.job(job.id).problem is None
    assert finish(service, service.claim(sent["run.cpu"]), report([0, 2]))
    merge = service.claim(messages(service)["inspect"])
    assert len(merge.order.payload["reports"]) == 1
    assert [(one["code"], one["targets"]) for one in merge.order.payload["failures"]] == [("runtime_limit", [1])]
    steps = service.job(job.id).steps
    assert [step["status"] for step in steps] == ["measured", "failed", "measured"]
    assert steps[1]["reason"] == RUNTIME_LIMIT["message"]


def test_a_target_that_no_worker_has_any_more_fails_alone(service, ask):
    job = ask()
    sent = messages(service)
    assert finish(service, service.claim(sent["run.cpu"]), report([0, 2]))
    assert service.job(job.id).status == "queued"
    beat(service, "wrk_1", (CPU,))
    with service.database.transaction() as session:
        session.execute(update(Unit).where(Unit.queue == "run.openvino").values(pending_until=Unit.created_at))
    reconcile.once(service.database, service.store, service.settings, service.messages.waiting)
    merge = service.claim(messages(service)["inspect"])
    assert "`openvino`" in merge.order.payload["failures"][0]["message"]
    assert service.job(job.id).status == "running"


def test_a_profile_without_any_result_fails_with_the_first_reason(service, ask):
    job = ask()
    for name in ("run.openvino", "run.cpu"):
        claim = service.claim(messages(service).get(name) or unit_in(service, name))
        service.write(lambda session, claim=claim: attempts.fail(
            session, service.store, claim.unit_id, claim.token, {**RUNTIME_LIMIT, "message": claim.unit_id}
        ))  # fmt: skip
    done = service.job(job.id)
    assert (done.status, done.problem["message"]) == ("failed", unit_in(service, "run.cpu"))
    assert units(service, job)["merge", "inspect"] == "cancelled"
    assert messages(service) == {}


def unit_in(service, name):
    with service.database.reading() as session:
        return session.scalars(select(Unit.id).where(Unit.queue == name)).one()


def test_a_lost_part_leaves_the_job_running_while_another_runs(service, ask):
    job = ask()
    sent = messages(service)
    cpu, openvino = service.claim(sent["run.cpu"]), service.claim(sent["run.openvino"])
    service.write(
        lambda session: attempts.give_back(
            session, service.store, cpu.unit_id, cpu.token, service.settings, counted=False
        )
    )
    assert service.job(job.id).status == "running"
    assert finish(service, openvino, report([1]))
    assert service.job(job.id).status == "queued"
    assert finish(service, service.claim(messages(service)["run.cpu"]), report([0, 2]))
    assert units(service, job)["merge", "inspect"] == "queued"


def test_a_cancelled_profile_ends_with_the_last_of_its_processes(service, ask):
    job = ask()
    sent = messages(service)
    cpu, openvino = service.claim(sent["run.cpu"]), service.claim(sent["run.openvino"])
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    for claim in (cpu, openvino):
        assert service.read(lambda session, c=claim: queue.look(session, c.unit_id, c.token)) == "cancel"
        assert service.job(job.id).status == "cancelling"
        assert service.write(lambda session, c=claim: attempts.cancelled(session, c.unit_id, c.token))
    assert service.job(job.id).status == "cancelled"
    assert set(units(service, job).values()) == {"cancelled"}
    assert service.events(job.id).count("cancelled") == 1


def test_ends_and_cancels_at_once_wait_for_each_other_in_one_order(service, ask):
    for _ in range(6):
        job = ask()
        sent = messages(service)
        claims = [service.claim(sent[name]) for name in ("run.cpu", "run.openvino")]

        def end(claim):
            told = report(claim.order.payload["targets"])
            assert finish(service, claim, told)

        steps = [lambda: service.write(lambda session: jobs.cancel(session, TENANT, job.id))]  # noqa: B023
        steps += [lambda claim=claim: end(claim) for claim in claims]
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(step) for step in steps]:
                done.result(120)
        messages(service)
        assert service.job(job.id).status == "cancelled"
        assert not set(units(service, job).values()) & {"queued", "running", "waiting"}


def test_a_profile_waits_for_a_network_that_is_to_be_made(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    first = service.submit().job
    making = service.messages.take()
    spec = engine.read_spec({"kind": "profile", "targets": TARGETS})
    job = service.submit(jobs.Request(first.output_model_id, None, spec, {})).job
    assert set(units(service, job).values()) == {"waiting"}
    assert messages(service) == {}
    assert service.finish(service.claim(making))
    assert set(messages(service)) == {"run.cpu", "run.openvino"}
    assert units(service, job)["merge", "inspect"] == "waiting"


def test_a_profile_of_a_network_that_does_not_come_fails_once(service):
    beat(service, "wrk_1", (CPU, OPENVINO))
    first = service.submit().job
    spec = engine.read_spec({"kind": "profile", "targets": TARGETS})
    job = service.submit(jobs.Request(first.output_model_id, None, spec, {})).job
    service.write(lambda session: jobs.cancel(session, TENANT, first.id))
    ended = service.job(job.id)
    assert (ended.status, ended.problem["code"]) == ("failed", "dependency_failed")
    assert set(units(service, job).values()) == {"failed"}


def test_the_baseline_comes_with_the_network(service, ask):
    baseline = service.ready_model(content=b"the baseline")
    ask([{"provider": "cpu"}], baseline_id=baseline.id)
    claim = service.claim()
    assert {item.path: item.size for item in claim.inputs}["baseline/model.onnx"] == len(b"the baseline")


def test_a_baseline_stays_as_long_as_a_job_needs_it(service, ask):
    baseline = service.ready_model()
    job = ask([{"provider": "cpu"}], baseline_id=baseline.id)

    def delete(session):
        catalog.delete_model(session, service.store, TENANT, baseline.id)

    with pytest.raises(ConflictError, match=job.id):
        service.write(delete)
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    service.write(delete)


def test_a_baseline_that_is_not_there_is_pointed_at(service, ask):
    with pytest.raises(InvalidError) as refused:
        ask([{"provider": "cpu"}], baseline_id="mdl_unknown")
    assert [error.pointer for error in refused.value.errors] == ["/baseline"]
    unchecked = service.upload()
    with pytest.raises(ConflictError, match="baseline is checking"):
        ask([{"provider": "cpu"}], baseline_id=unchecked.id)


def test_parts_of_the_version_before_are_parts(service, ask):
    """Its API calls them `run`, and says not what a unit waits for."""
    job = ask()
    sent = messages(service)
    with service.database.transaction() as session:
        session.execute(update(Unit).where(Unit.kind == "part").values(kind="run", position=None))
        session.execute(update(Unit).where(Unit.kind == "merge").values(waits_for=None))
    for name, indices in (("run.cpu", [0, 2]), ("run.openvino", [1])):
        claim = service.claim(sent[name])
        assert (claim.kind, claim.order.payload["targets"]) == ("part", indices)
        assert finish(service, claim, report(indices))
    merge = service.claim(messages(service)["inspect"])
    assert len(merge.order.payload["reports"]) == 2
    assert finish(service, merge, report([0, 1, 2]))
    assert service.job(job.id).status == "succeeded"
