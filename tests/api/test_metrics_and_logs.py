"""What operators are told that they can watch is what there is: metrics by name and label, fields of the log."""

import re
from pathlib import Path

import pytest

from models import Job
from services import retention
from services.storage import open_store

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
LOGS = PAGE.split("## Logs")[1].split("##")[0]
TABLE = dict(re.findall(r"^\| `(onnxpress_\w+)` \|([^|]*)\|", PAGE.split("## Metrics")[1], re.MULTILINE))


@pytest.fixture
def watched(service):
    """A service in which everything that is measured has happened."""
    with service.client() as client:
        model = service.ready_model(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        for _ in range(3):
            assert client.post("/v1/jobs", json={**body, "cache": "refuse"}).status_code == 202
    with service.database.transaction() as session:
        first, second, _ = session.query(Job).order_by(Job.id)
        first.status, first.problem = "failed", {"code": "process_crashed", "class": "user"}
        second.status, second.started_at, second.finished_at = "succeeded", second.created_at, second.updated_at
    retention.apply(
        retention.Place(service.database, open_store(service.settings), service.settings.data_dir), service.settings
    )
    return service


def test_every_metric_is_documented_with_its_labels(watched):
    key = watched.new_key(scopes=("metrics", "operator")).text
    with watched.client() as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).text
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == set(TABLE)
    found = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    told = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in TABLE.items()}
    assert {name: told[name] for name in found} == found
    assert set(told) - set(found) <= {"onnxpress_workers", "onnxpress_webhook_deliveries"}


def test_every_metric_of_an_alert_exists():
    alerts = PAGE.split("Alerts worth having")[1].split("## Kubernetes")[0]
    assert set(re.findall(r"onnxpress_\w+", alerts)) <= set(TABLE)


def test_the_fields_of_a_request_in_the_log_are_documented(service, client, caplog):
    caplog.set_level("INFO", logger="onnxpress.access")
    client.get("/v1/jobs/job_00000000000000000000000000")
    # The line is written when the answer is out, by the thread that serves.
    told = service.until(lambda: [record.fields for record in caplog.records if record.name == "onnxpress.access"])
    fields = told[0]
    assert "job" in fields
    assert set(fields) <= set(re.findall(r"`(\w+)`", LOGS))
