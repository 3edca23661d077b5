"""An attempt ends its unit, or leaves it to somebody else; never both."""

import os
import signal
import threading
import time

import psutil
import pytest

import engine
import sandbox
from models import Unit
from services import analyses, jobs, uploads
from services.attempts import expire_lease

PATIENCE_S = 240.0


@pytest.fixture
def row(database):
    def row(kind, row_id):
        with database.reading() as session:
            return session.get_one(kind, row_id)

    return row


def children(settings):
    """The processes that work on units of this process's: each has a keeper in between."""
    mine = str(settings.data_dir / "work")
    found = []
    for process in psutil.process_iter():
        try:
            if process.parent().ppid() == os.getpid() and process.environ().get("HOME", "").startswith(mine):
                found.append(process)
        except (psutil.Error, AttributeError):
            continue
    return found


def when_it_works(settings, action):
    """Do something, in a thread, once the attempt has a child."""

    def run():
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for child in children(settings):
                action(child)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_uploads_become_ready(attempts, database, upload, network, data, row, store):
    model = upload(uploads.register_model, network)
    dataset = upload(uploads.register_dataset, data)
    for unit_id in database.publisher.sent:
        attempts.run(unit_id)
    model, dataset = row(type(model), model.id), row(type(dataset), dataset.id)
    assert (model.state, dataset.state) == ("ready", "ready"), (model.problem, dataset.problem)
    assert engine.Inspection.model_validate(model.inspection).ops == {"MatMul": 1}
    assert list(attempts.workspaces.iterdir()) == []


def test_what_is_no_network_is_rejected(attempts, database, upload, row, settings):
    model = upload(uploads.register_model, b"text")
    attempts.run(database.publisher.sent[0])
    found = row(type(model), model.id)
    assert (found.state, found.problem["code"]) == ("rejected", "model_invalid")
    assert not [path for path in (settings.data_dir / "store").rglob("*") if path.is_file()]
    assert list(attempts.workspaces.iterdir()) == []


def test_a_damaged_input_is_never_worked_on(attempts, database, upload, network, row, store):
    model = upload(uploads.register_model, network)
    [path] = [path for path in (store._root / "blobs").rglob("*") if path.is_file()]
    path.write_bytes(network[:-1] + b"?")
    attempts.run(database.publisher.sent[0])
    found = row(type(model), model.id)
    assert (found.state, found.problem["code"]) == ("rejected", "store_damaged")


def test_a_crash_is_tried_again(attempts, database, upload, network, row, settings):
    model = upload(uploads.register_model, network)
    thread = when_it_works(settings, lambda child: child.send_signal(signal.SIGSEGV))
    attempts.run(database.publisher.sent[0])
    thread.join()
    assert row(Unit, database.publisher.sent[0]).crashes == 1
    assert len(database.publisher.sent) == 2
    attempts.run(database.publisher.sent[1])
    assert row(type(model), model.id).state == "ready"


def test_what_a_crashed_attempt_wrote_down_is_there_for_the_next(attempts, database, upload, network, settings):
    upload(uploads.register_model, network)
    unit_id = database.publisher.sent[0]
    steps = settings.data_dir / "work" / unit_id / "1" / "steps"

    def crash(child):
        (steps / "00.json").write_text("{}")
        child.send_signal(signal.SIGSEGV)

    thread = when_it_works(settings, crash)
    attempts.run(unit_id)
    thread.join()
    assert (steps / "00.json").exists()
    attempts.run(database.publisher.sent[1])
    assert not steps.parent.parent.exists()


def test_a_lost_lease_ends_the_child_and_commits_nothing(attempts, database, upload, network, row, settings):
    model = upload(uploads.register_model, network)
    unit_id = database.publisher.sent[0]

    def lose(child):
        child.suspend()
        with database.transaction() as session:
            expire_lease(session, attempts.store, session.get_one(Unit, unit_id), settings)

    thread = when_it_works(settings, lose)
    attempts.run(unit_id)
    thread.join()
    assert children(settings) == []
    assert row(type(model), model.id).state == "checking"
    unit = row(Unit, unit_id)
    assert (unit.status, unit.losses) == ("queued", 1)


def test_the_lease_is_renewed_while_the_child_works(attempts, database, upload, network, row, settings):
    upload(uploads.register_model, network)
    unit_id = database.publisher.sent[0]
    leases = []

    def watch(child):
        child.suspend()
        first = row(Unit, unit_id).lease_until
        end = time.monotonic() + PATIENCE_S
        while row(Unit, unit_id).lease_until == first and time.monotonic() < end:
            time.sleep(0.05)
        leases.extend([first, row(Unit, unit_id).lease_until])
        child.resume()

    thread = when_it_works(settings, watch)
    attempts.run(unit_id)
    thread.join()
    assert leases[1] > leases[0]


def test_a_cancelled_job_ends_its_child(attempts, database, upload, network, data, row, settings):
    model, dataset = upload(uploads.register_model, network), upload(uploads.register_dataset, data)
    for unit_id in list(database.publisher.sent):
        attempts.run(unit_id)
    spec = engine.read_spec({"recipe": {"passes": [{"type": "simplify"}]}})
    with database.transaction() as session:
        job = jobs.submit(session, "default", jobs.Request(model.id, dataset.id, spec, {})).job

    def cancel(child):
        child.suspend()
        with database.transaction() as session:
            jobs.cancel(session, "default", job.id)

    thread = when_it_works(settings, cancel)
    attempts.run(database.publisher.sent[-1])
    thread.join()
    assert row(type(job), job.id).status == "cancelled"
    assert children(settings) == []
    assert list(attempts.workspaces.iterdir()) == []


def test_every_child_takes_turns_with_those_of_its_host(
    attempts, database, upload, network, data, settings, monkeypatch
):
    """Inspections and analyses too: nothing of ours works beside a measurement."""
    orders, start = [], sandbox.start
    monkeypatch.setattr(sandbox, "start", lambda order, **more: orders.append(order) or start(order, **more))
    upload(uploads.register_model, network)
    upload(uploads.register_dataset, data)
    for unit_id in database.publisher.sent:
        attempts.run(unit_id)
    assert [order.verb for order in orders] == ["inspect_model", "inspect_dataset"]
    for order in orders:
        assert (order.quiet, order.tenant) == (settings.data_dir.resolve() / "quiet", "default")


def test_a_message_for_nothing_does_nothing(attempts):
    attempts.run("unt_none")


def test_an_analysis_is_kept_and_its_processor_time_counted(attempts, database, upload, network, row):
    model = upload(uploads.register_model, network)
    attempts.run(database.publisher.sent.pop())
    with database.transaction() as session:
        unit_id = analyses.start(session, "default", model.id, attempts.settings).unit_id
    attempts.run(database.publisher.sent.pop())
    with database.reading() as session:
        found = analyses.find(session, "default", model.id)
    assert found.result["parameters"] == 6
    assert [item["node"] for item in found.result["frozen"]]
    unit = row(Unit, unit_id)
    # Importing the engine alone takes longer.
    assert 0.05 < unit.cpu_s < 60


def test_an_analysis_that_takes_too_much_says_so(attempts, database, upload, network):
    model = upload(uploads.register_model, network)
    attempts.run(database.publisher.sent.pop())
    with database.transaction() as session:
        unit_id = analyses.start(session, "default", model.id, attempts.settings).unit_id
        session.get_one(Unit, unit_id).max_memory_mb = 8
    attempts.run(database.publisher.sent.pop())
    with database.reading() as session:
        found = analyses.find(session, "default", model.id)
    assert (found.problem["code"], found.result) == ("memory_limit", None)
    assert found.problem["message"].startswith("The network's analysis")
