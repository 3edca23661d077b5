"""A service without processes: the real database and store (both kinds), and a publisher that keeps its messages."""

import itertools
from dataclasses import dataclass, field

import pytest

import engine
from services import artifacts, attempts, db, jobs, keys, queue, uploads
from services.claims import Answer, Candidate, Result
from services.storage import Store, open_store
from settings import Settings

TENANT = "default"
INSPECTION = engine.Inspection.model_validate(
    {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["N", 3]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", 2]}],
        "opset": {"": 17},
        "ir_version": 9,
        "producer": "test",
        "parameters": 8,
        "size_bytes": 200,
        "nodes": 1,
        "ops": {"Gemm": 1},
        "quantized": "none",
        "float_type": "float32",
        "external_data": False,
    }
)
DATA = engine.DatasetInspection.model_validate(
    {
        "arrays": [{"name": "image", "dtype": "uint8", "shape": [40, 3]}],
        "label": {"name": "label", "dtype": "int64", "shape": [40]},
        "samples": 40,
        "labelled": 40,
        "unlabelled": 0,
        "metric": "top1",
    }
)
FACTS = {"sha256": "0" * 64, "size_bytes": 200, "parameters": 8, "nodes": 1, "ops": {"Gemm": 1}}
REPORT = engine.Report.model_validate(
    {
        "summary": "Nothing was gained.",
        "unchanged": True,
        "target": {},
        "original": FACTS,
        "compressed": FACTS,
        "steps": [
            {
                "index": 0,
                "type": "simplify",
                "parameters": {},
                "status": "refused",
                "refusal": {"code": "no_gain", "reason": "Already simple."},
                "seconds": 0.1,
            }
        ],
        "size": {"original": 200, "compressed": 200},
        "quality": [],
        "latency": None,
        "memory": None,
        "verdict": {"outcome": "none"},
        "calibration_samples": 20,
        "held_out_samples": 20,
        "environment": {
            "cpu": "x",
            "cpu_flags": [],
            "cores": 2,
            "onnxruntime": "1.32",
            "provider": "cpu",
            "python": "3.11",
            "system": "Linux",
        },
        "seconds": 1.0,
    }
)
# What a search's report says besides, and what is measured of a candidate.
SEARCHED = {
    "goal": {"minimise": "size"},
    "strategy": "auto",
    "seed": 0,
    "budget": {"max_seconds": 180.0, "max_trials": 16},
    "seconds": 1.0,
    "trials": {},
    "stopped": "Nothing is left to try.",
    "chosen": None,
    "met": True,
}
VALUES = {
    "size_bytes": 100,
    "macs": 10,
    "parameters": 4,
    "latency": {"value": 0.5, "interval": {"low": 0.4, "high": 0.6, "confidence": 0.95}},
    "seconds": 1.0,
}
_contents = itertools.count()


@dataclass
class Messages:
    """A publisher that keeps what it was given, and that a test may switch off."""

    sent: list[tuple[str, str]] = field(default_factory=list)
    on: bool = True

    def publish(self, queue: str, unit_id: str) -> bool:
        if self.on:
            self.sent.append((queue, unit_id))
        return self.on

    def waiting(self, queue: str) -> int | None:
        return sum(name == queue for name, _ in self.sent) if self.on else None

    def take(self) -> str:
        return self.sent.pop(0)[1]


@dataclass
class Service:
    """The parts, and the verbs that tests repeat."""

    database: db.Database
    store: Store
    settings: Settings
    messages: Messages

    def upload(self, register=uploads.register_model, content=None, tenant=TENANT, **fields):
        content = content if content is not None else f"content {next(_contents)}".encode()
        with self.store.writer(tenant, limit=1 << 20) as writer:
            writer.write(content)
            writer.finish()
            with self.database.transaction() as session:
                return register(session, tenant, writer, name="net", **fields)

    def claim(self, unit_id=None, lease_s=30.0):
        with self.database.transaction() as session:
            return queue.claim(session, unit_id or self.messages.take(), worker_id="wrk_1", lease_s=lease_s)

    def ready_model(self, **fields):
        on, self.messages.on = self.messages.on, True
        row = self._inspected(self.upload(**fields), INSPECTION)
        self.messages.on = on
        return row

    def ready_dataset(self, **fields):
        return self._inspected(self.upload(uploads.register_dataset, **fields), DATA)

    def _inspected(self, row, inspection):
        claim = self.claim(self.messages.sent.pop()[1])
        with self.database.transaction() as session:
            assert attempts.finish(session, self.store, claim.unit_id, claim.token, Result(Answer(inspection)))
        return self.read(lambda session: session.get_one(type(row), row.id))

    def request(self, model=None, dataset=None, *, passes=({"type": "simplify"},), labels=None, **fields):
        spec = engine.read_spec({"recipe": {"passes": list(passes)}, **fields})
        model = model or self.ready_model()
        return jobs.Request(model.id, dataset.id if dataset else None, spec, labels or {})

    def submit(self, request=None, **fields):
        request = request or self.request()
        with self.database.transaction() as session:
            return jobs.submit(session, TENANT, request, **fields)

    def finish(self, claim, inspection=INSPECTION, **more):
        """Store and commit a result, as a worker does: `more` is measured of a candidate, or said of a search."""
        if claim.kind == "trial":
            value = Candidate(engine.TrialValues.model_validate({**VALUES, **more}))
            return self.leave(claim, {"model.onnx": b"small"}, lambda: Answer(value, "candidate", inspection))
        report = REPORT
        if claim.kind == "search":
            told = REPORT.model_dump(mode="json")
            report = engine.read_report({**told, "kind": "search", "search": {**SEARCHED, **more}})
        names = {"model.onnx": b"small", "report.json": b"{}", "report.md": claim.token.encode()}
        return self.leave(claim, names, lambda: Answer(report, "network", inspection))

    def leave(self, claim, names, answer):
        """Store what a unit's process has left, and commit its answer."""
        writers = {name: self.store.writer(TENANT, limit=1 << 20) for name in names}
        try:
            for name, content in names.items():
                writers[name].write(content)
                writers[name].finish()
            files = {name: artifacts.NewFile(name, writer) for name, writer in writers.items()}
            reports = tuple(file for name, file in files.items() if name.startswith("report."))
            result = Result(answer(), (files["model.onnx"],), reports)
            with self.database.transaction() as session:
                return attempts.finish(session, self.store, claim.unit_id, claim.token, result)
        finally:
            for writer in writers.values():
                writer.abort()

    def write(self, step):
        with self.database.transaction() as session:
            return step(session)

    def read(self, step):
        with self.database.reading() as session:
            return step(session)

    def job(self, job_id):
        return self.read(lambda session: jobs.get(session, TENANT, job_id))

    def events(self, job_id):
        return [event.type for event in self.read(lambda session: jobs.events(session, TENANT, job_id))]

    def stored(self) -> set[str]:
        """The names of everything in the store, complete or not."""
        incoming = self.settings.data_dir / "store" / "incoming"
        complete = {f"{found.tenant_id}/{found.sha256}" for found in self.store.blobs()}
        return complete | {path.name for path in incoming.iterdir()}


@pytest.fixture(scope="session")
def open_database():
    """Give the function that opens a database once for all tests: SQLAlchemy compiles each statement once for each."""
    opened: dict[str, db.Database] = {}

    def open_once(url: str, messages: Messages) -> db.Database:
        database = opened.setdefault(url, db.Database(url))
        database.publisher = messages
        return database

    yield open_once
    for database in opened.values():
        database.dispose()


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory):
    """Where the embedded stack's database is, anew for each test."""
    return tmp_path_factory.mktemp("embedded") / "x.db"


@pytest.fixture(params=["embedded", pytest.param("production", marks=pytest.mark.soak)])
def service(request, tmp_path, migrate, open_database, sqlite_file):
    """A service on each of the two stacks: SQLite and a folder, Postgres and a bucket."""
    if request.param == "embedded":
        settings = Settings(data_dir=tmp_path, database_url=f"sqlite:///{sqlite_file}")
        sqlite_file.unlink(missing_ok=True)
        migrate(settings)
    else:
        bucket = request.getfixturevalue("bucket_fields")
        settings = Settings(data_dir=tmp_path, database_url=request.getfixturevalue("postgres_url"), **bucket)
    messages = Messages()
    database = open_database(settings.database, messages)
    with database.transaction() as session:
        keys.ensure_tenant(session, TENANT)
        keys.ensure_tenant(session, "other")
    yield Service(database, open_store(settings), settings, messages)
    # The file goes, and nothing may go on in it.
    database.dispose()
