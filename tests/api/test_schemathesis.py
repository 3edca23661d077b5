"""Strangers hold the service against its description: what schemathesis sends, and a client that a generator writes."""

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"


# The same few requests at every run, bounded by their number, so that a busy machine sends as many; `make fuzz` sends new ones
# for a time, and thousands of edge cases.
@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(("--phases=examples,fuzzing,stateful", "--max-examples=10", "--seed=1"), marks=pytest.mark.soak),
        pytest.param(("--max-examples=450", "--max-time=150"), marks=pytest.mark.fuzz),
    ],
)
def test_schemathesis_finds_no_failure_and_no_undocumented_answer(service, tmp_path, bounds):
    """Examples, edge cases, fuzzing and chains of requests, all checks."""
    with service.client() as client:
        model, dataset = service.ready_model(client), service.ready_dataset(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        job = client.post("/v1/jobs", json=body).json()["id"]
        client.post(f"/v1/jobs/{job}:cancel")
        sha256 = client.get(f"/v1/models/{model}").json()["sha256"]
    key = service.new_key(scopes=("admin", "metrics", "operator", "write"))
    existing = {"model_id": model, "dataset_id": dataset, "job_id": job, "sha256": sha256, "type": "simplify"}
    env = {
        **os.environ,
        "EXISTING": ",".join(f"{name}={value}" for name, value in existing.items()),
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    # What is well formed may still name what is not there, be too large, come with a key that was used for something else, or too fast.
    accepted = '["2xx", "304", "400", "404", "406", "409", "413", "415", "422", "429"]'
    # Without its version a request of tus is of none that is spoken.
    refused = '["400", "401", "403", "404", "406", "409", "410", "412", "413", "415", "422"]'
    config = (
        f"[checks.positive_data_acceptance]\nexpected-statuses = {accepted}\n"
        f"[checks.negative_data_rejection]\nexpected-statuses = {refused}\n"
        f"[checks.missing_required_header]\nexpected-statuses = {refused}\n"
    )
    (tmp_path / "schemathesis.toml").write_text(config)
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{service.url}/openapi.json",
            "--checks=all",
            "--request-timeout=120",
            *bounds,
            "--no-color",
            "--warnings=off",
            f"--header=Authorization:Bearer {key.text}",
            # A stream of a job that has not ended goes on; test_event_stream reads them.
            "--exclude-operation-id=watch_job",
            # It would revoke the key that all this is done with.
            "--exclude-operation-id=revoke_key",
            "--exclude-operation-id=change_key",
            # What opens it cannot be guessed; test_links follows some.
            "--exclude-operation-id=follow_link",
            # It could suspend the tenant.
            "--exclude-operation-id=change_tenant",
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-12_000:] + found.stderr[-2000:]
    assert "No issues found" in found.stdout, found.stdout


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """The client that openapi-python-client writes from the description alone, imported."""
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(DESCRIPTION), "--meta", "none"]
    scripts = Path(sys.executable).parent
    made = subprocess.run(
        [*command, "--output-path", str(tmp_path / "strangers_client")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "Unable to parse" not in made.stdout, made.stdout
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("strangers_client")
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers_client"]:
        del sys.modules[name]


def test_a_generated_client_posts_polls_and_downloads(service, generated):
    def part(name):
        return importlib.import_module(f"strangers_client.{name}")

    content = b"a stranger's network"
    with generated.AuthenticatedClient(base_url=service.url, token=service.keys["alpha"]) as client:
        file = part("types").File(payload=io.BytesIO(content))
        uploaded = part("api.models.upload_model").sync(client=client, body=file, name="net")
        service.inspect(uploaded.id, service.inspection)
        form = part("models.upload_model_files_body").UploadModelFilesBody(
            file=part("types").File(payload=io.BytesIO(content), file_name="form.onnx")
        )
        assert part("api.models.upload_model").sync(client=client, body=form).name == "form"
        assert part("api.models.get_model").sync(uploaded.id, client=client).state == "ready"
        job = part("models.compress_job").CompressJob.from_dict(
            {"model": uploaded.id, "recipe": {"passes": [{"type": "simplify"}]}}
        )
        accepted = part("api.jobs.create_job").sync(client=client, body=job)
        assert part("api.jobs.cancel_job").sync(accepted.id, client=client).status == "cancelled"
        polled = part("api.jobs.get_job").sync(accepted.id, client=client, wait=1)
        assert (polled.status, polled.problem.code) == ("cancelled", "cancelled")
        told = part("api.jobs.get_report_json").sync(accepted.id, client=client)
        assert (told.kind, told.status, told.code) == ("unfinished", "cancelled", "cancelled")
        downloaded = part("api.models.get_model_content").sync(uploaded.id, client=client)
        assert downloaded.payload.read() == content
