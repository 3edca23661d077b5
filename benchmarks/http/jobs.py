"""Many jobs in the database: what a list, a filter and a look cost beside a few, and beside a bare route."""

import statistics
import time
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import insert, inspect, select

import engine
from benchmarks.http.server import TENANT, Api
from models import Job, JobLabel, Model, Unit, new_id
from services import attempts, db, queue, uploads
from services.claims import Answer, Result
from services.storage import open_store

INSPECTION = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 2]}],
    "opset": {"": 17}, "ir_version": 9, "producer": "", "parameters": 10, "size_bytes": 100, "nodes": 1,
    "ops": {"Gemm": 1}, "quantized": "none", "float_type": "float32", "external_data": False,
}  # fmt: skip
ROUNDS = 200


def ready_model(api: Api) -> str:
    """Store a network and do what a worker does with it."""
    database = db.Database.from_settings(api.settings)
    store = open_store(api.settings)
    with store.writer(TENANT, limit=1 << 20) as writer:
        writer.write(b"network")
        writer.finish()
        with database.transaction() as session:
            model = uploads.register_model(session, TENANT, writer, name="net")
    with database.transaction() as session:
        unit = session.scalars(select(Unit.id).where(Unit.model_id == model.id)).one()
        claim = queue.claim(session, unit, worker_id="wrk_benchmark", lease_s=30)
        assert claim is not None
        result = Result(Answer(engine.Inspection.model_validate(INSPECTION)))
        attempts.finish(session, store, unit, claim.token, result)
    database.dispose()
    return model.id


def new_job(client: httpx.Client, model: str) -> str:
    """Ask for a job."""
    body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}, "labels": {"run": "one"}}
    answer = client.post("/v1/jobs", json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])


def fill(api: Api, like: str, count: int) -> None:
    """Put finished jobs like an existing one into the database, as old as if one had come each second."""
    database = db.Database.from_settings(api.settings)
    with database.transaction() as session:
        job = session.get_one(Job, like)
        output = session.get_one(Model, job.output_model_id)
        jobs: list[dict[str, Any]] = []
        models: list[dict[str, Any]] = []
        for number in range(count):
            age = timedelta(seconds=count - number)
            model_id, job_id = new_id("mdl"), new_id("job")
            models.append(_row(output) | {"id": model_id, "job_id": job_id, "created_at": output.created_at - age})
            jobs.append(
                _row(job)
                | {
                    "id": job_id,
                    "output_model_id": model_id,
                    "status": "succeeded" if number % 10 else "failed",
                    "labels": {"run": str(number % 100)},
                    "created_at": job.created_at - age,
                }
            )
        session.execute(insert(Model), models)
        session.execute(insert(Job), jobs)
        labels = [
            {"tenant_id": TENANT, "name": "run", "value": row["labels"]["run"], "job_id": row["id"]} for row in jobs
        ]
        session.execute(insert(JobLabel), labels)
    database.dispose()


def measure(client: httpx.Client, job: str) -> dict[str, float]:
    """Give the median milliseconds of a list, a filter by status, one by label, and a look."""
    ways = {
        "list": "/v1/jobs?limit=20",
        "status": "/v1/jobs?status=cancelled&limit=20",
        "label": "/v1/jobs?label=run%3Done&limit=20",
        "get": f"/v1/jobs/{job}",
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, path in ways.items():
            started = time.perf_counter()
            client.get(path).raise_for_status()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def beside_bare(client: httpx.Client, job: str, bare: str) -> tuple[float, float]:
    """Give the median milliseconds of a look at a job and of a bare route, in turn."""
    looks, bares = [], []
    with httpx.Client(base_url=bare, trust_env=False) as plain:
        for _ in range(2 * ROUNDS):
            started = time.perf_counter()
            client.get(f"/v1/jobs/{job}")
            middle = time.perf_counter()
            plain.get("/")
            looks.append(1e3 * (middle - started))
            bares.append(1e3 * (time.perf_counter() - middle))
    return statistics.median(looks), statistics.median(bares)


def _row(row: Job | Model) -> dict[str, Any]:
    return {each.key: getattr(row, each.key) for each in inspect(row).mapper.column_attrs}
