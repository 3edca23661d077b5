"""push, data, keys, retry and logs, against a service that says what the test wants."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import onnxpress
from onnxpress.commands.jobs import job_table
from onnxpress.errors import DigestMismatchError
from onnxpress.exit_codes import ExitCode

KEY = "opk_test_secret"
LARGE = os.urandom(100_000)
SHA256 = hashlib.sha256(LARGE).hexdigest()
MODEL = {"id": "mdl_1", "state": "ready", "sha256": SHA256, "name": "net"}


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(LARGE)
    return path


def test_known_bytes_are_not_sent(scripted, cli, large):
    scripted.on("HEAD", f"/blobs/{SHA256}", {"headers": {"Content-Length": "0"}})
    scripted.on("POST", "/models", {"status": 201, "json": MODEL})
    done = cli(scripted.url, KEY, "push", large)
    assert (done.code, done.stdout) == (0, "mdl_1\n"), done.stderr
    (asked,) = scripted.asked("POST", "/models")
    assert json.loads(asked.body) == {"blob": SHA256}
    assert asked.headers["Idempotency-Key"]


def test_bytes_that_went_in_between_are_sent(scripted, cli, large):
    gone = {"title": "x", "status": 422, "code": "unknown_blob", "detail": "gone"}
    scripted.on("HEAD", f"/blobs/{SHA256}", {"headers": {"Content-Length": "0"}})
    scripted.on("POST", "/models", {"status": 422, "json": gone}, {"status": 201, "json": MODEL})
    assert cli(scripted.url, KEY, "push", large).code == 0
    assert [len(one.body) for one in scripted.asked("POST", "/models")] == [
        len(json.dumps({"blob": SHA256})) - 1,
        100_000,
    ]


def test_unknown_bytes_are_sent_and_named(scripted, cli, large):
    scripted.on("HEAD", f"/blobs/{SHA256}", {"status": 404, "headers": {"Content-Length": "0"}})
    scripted.on("POST", "/models", {"status": 201, "json": MODEL})
    scripted.on("PATCH", "/models/mdl_1", {"json": MODEL | {"alias": "production"}})
    done = cli(scripted.url, KEY, "push", large, "--alias", "production", "--tag", "a", "--json")
    assert done.code == 0, done.stderr
    assert done.json["model"]["alias"] == "production"
    assert scripted.asked("POST", "/models")[0].body == LARGE
    assert json.loads(scripted.asked("PATCH", "/models/mdl_1")[0].body) == {"alias": "production", "tags": ["a"]}


def test_a_table_is_converted_and_sent(scripted, cli, tmp_path):
    scripted.on("POST", "/datasets", {"status": 201, "json": {"id": "dst_1", "state": "ready"}})
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2,x\n3,4,y\n")
    done = cli(scripted.url, KEY, "data", "t.csv", "--label", "kind", "--input", "features", "--out", "kept.npz")
    assert (done.code, done.stdout) == (0, "dst_1\n"), done.stderr
    assert "2 samples; classes: x, y" in done.stderr
    (asked,) = scripted.asked("POST", "/datasets")
    assert asked.body == Path("kept.npz").read_bytes()
    assert "name=t" in asked.path
    with np.load(io.BytesIO(asked.body)) as found:
        assert found["features"].shape == (2, 2)
    only = cli(scripted.url, KEY, "data", "t.csv", "--label", "kind", "--no-upload", "--out", "only.npz")
    assert (only.code, only.stdout) == (0, "only.npz\n")
    assert len(scripted.asked("POST", "/datasets")) == 1


def test_a_file_of_arrays_is_sent_as_it_is(scripted, cli, tmp_path):
    scripted.on("POST", "/datasets", {"status": 201, "json": {"id": "dst_1", "state": "ready"}})
    (tmp_path / "d.safetensors").write_bytes(b"arrays")
    assert cli(scripted.url, KEY, "data", "d.safetensors", "--metric", "mse", "--json").json["classes"] is None
    assert scripted.asked("POST", "/datasets")[0].body == b"arrays"


@pytest.mark.parametrize(
    "words",
    [
        ["data", "folder"],
        ["data", "folder", "--size", "10"],
        ["data", "folder", "--size", "2x2", "--layout", "chwn"],
        ["data", "folder", "--size", "2x2", "--scale", "1/0"],
        ["data", "folder", "--size", "2x2", "--mean", "a,b"],
        ["data", "folder", "--size", "2x2"],
        ["data", "missing.csv"],
        ["data", "missing.npz"],
        ["data", "missing.npz", "--no-upload"],
        ["push", "missing.onnx"],
    ],
)
def test_wrong_words_are_usage(scripted, cli, tmp_path, words):
    (tmp_path / "folder").mkdir()
    done = cli(scripted.url, KEY, *words)
    assert done.code == ExitCode.USAGE, done.stderr
    assert scripted.requests == []


def test_keys(scripted, cli):
    row = {"id": "key_1", "name": "ci", "scopes": ["write"], "created_at": "2026-01-02T03:04:05Z"}
    scripted.on("POST", "/keys", {"status": 201, "json": row | {"key": "opk_1_secret"}})
    scripted.on("GET", "/keys", {"json": {"items": [row]}})
    scripted.on("DELETE", "/keys/key_1", {"json": row | {"revoked_at": "2026-01-02T03:04:05Z"}})
    scripted.on("PATCH", "/keys/key_1", {"json": row})
    made = cli(scripted.url, KEY, "keys", "create", "ci", "--scope", "read", "--days", 30)
    assert (made.code, made.stdout) == (0, "opk_1_secret\n"), made.stderr
    assert "not shown again" in made.stderr
    asked = json.loads(scripted.asked("POST", "/keys")[0].body)
    assert (asked["name"], asked["scopes"]) == ("ci", ["read"])
    life = datetime.fromisoformat(asked["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29.9) < life < timedelta(days=30)
    assert cli(scripted.url, KEY, "keys", "list").stdout == "key_1\n"
    assert cli(scripted.url, KEY, "keys", "list", "--json").json["items"] == [row]
    assert cli(scripted.url, KEY, "keys", "revoke", "key_1").stdout == "key_1\n"
    assert cli(scripted.url, KEY, "keys", "expire", "key_1", "--json").json["key"] == row
    assert json.loads(scripted.asked("PATCH", "/keys/key_1")[0].body) == {"expires_at": None}


def test_retry_and_logs(scripted, cli):
    scripted.on("POST", "/jobs/job_1:retry", {"status": 202, "json": {"id": "job_2", "status": "queued"}})
    scripted.on("GET", "/jobs/job_1/logs", {"body": b"t queued\nt failed\n", "headers": {"Content-Type": "text/plain"}})
    assert cli(scripted.url, KEY, "retry", "job_1").stdout == "job_2\n"
    assert cli(scripted.url, KEY, "logs", "job_1").stdout == "t queued\nt failed\n"


def test_a_stream_is_taken_up_where_it_broke(scripted, cli):
    lines = [
        b'id: %d\nevent: %s\ndata: {"at": "t", "step": 0}\n\n' % (n, kind) for n, kind in enumerate((b"a", b"b"), 1)
    ]
    stream = {"Content-Type": "text/event-stream"}
    first = {"body": b"retry: 2000\n\n" + lines[0] + lines[1], "headers": stream, "cut": 13 + len(lines[0])}
    rest = {"body": b": still here\n\n" + lines[1], "headers": stream}
    scripted.on("GET", "/jobs/job_1/events", first, rest, {"status": 204})
    done = cli(scripted.url, KEY, "logs", "job_1", "--follow")
    assert (done.code, done.stdout) == (0, "t a step=0\nt b step=0\n")
    asked = scripted.asked("GET", "/jobs/job_1/events")
    assert [one.headers.get("Last-Event-Id", one.headers.get("Last-Event-ID")) for one in asked] == [None, "1", "2"]


def test_a_dry_run_ends_as_the_job_would(scripted, cli, large):
    scripted.on("HEAD", f"/blobs/{SHA256}", {"status": 404, "headers": {"Content-Length": "0"}})
    scripted.on("POST", "/models", {"status": 201, "json": MODEL})
    problem = {"title": "x", "status": 422, "code": "spec_invalid", "detail": "It is quantized already."}
    plan = {"valid": True, "problem": None, "warnings": ["few samples"], "cached_from": "job_0"}
    plan["estimate"] = {"summary": "About 2 min (1 to 5) and 0.7 GB of memory."}
    gate = {"gate": "top1", "rule": "max_drop", "value": 0.01, "needed": 268, "usually": 542, "judging": 300}
    plan["gate_samples"] = [gate]
    scripted.on("POST", "/jobs:validate", {"json": plan}, {"json": plan | {"valid": False, "problem": problem}})
    words = ["compress", large, "--recipe", "int8", "--dry-run", "--no-cache", "--priority", 3]
    done = cli(scripted.url, KEY, *words, "--json")
    assert (done.code, done.json["plan"]) == (0, plan)
    assert "few samples" in done.stderr
    assert "gate top1 max_drop 0.01: takes 268 samples, about 542 where some decisions change; 300 judge" in done.stderr
    assert "job_0 would answer" in done.stderr
    assert "estimate: About 2 min" in done.stderr
    asked = json.loads(scripted.asked("POST", "/jobs:validate")[0].body)
    assert (asked["cache"], asked["priority"], asked["model"]) == ("refuse", 3, "mdl_1")
    refused = cli(scripted.url, KEY, *words)
    assert refused.code == ExitCode.USAGE
    assert "quantized already" in refused.stderr
    assert scripted.asked("POST", "/jobs") == []


FILES = {"model.onnx": b"network", "weights.bin": b"weights"}


def manifest():
    lines = [
        {"path": name, "sha256": hashlib.sha256(text).hexdigest(), "size": len(text)} for name, text in FILES.items()
    ]
    return hashlib.sha256(json.dumps(lines, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return stream.getvalue()


def test_a_network_of_several_files_is_checked_by_its_manifest(scripted, client, tmp_path):
    scripted.on("GET", "/models/mdl_1", {"json": {"id": "mdl_1", "state": "ready", "artifact": manifest()}})
    content = zipped(FILES)
    # Such a zip is not served in parts: it starts again from the front.
    scripted.on("GET", "/models/mdl_1/content", {"body": content, "cut": 50}, {"body": content})
    client.models.download("mdl_1", tmp_path / "net.zip")
    with zipfile.ZipFile(tmp_path / "net.zip") as archive:
        assert archive.read("weights.bin") == b"weights"
    for wrong in (zipped(FILES | {"weights.bin": b"other"}), b"no zip"):
        scripted.on("GET", "/models/mdl_1/content", {"body": wrong})
        with pytest.raises(DigestMismatchError):
            client.models.download("mdl_1", tmp_path / "other.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.zip"]


def test_completion_is_offered():
    env = {**os.environ, "_ONNXPRESS_COMPLETE": "complete_bash", "COMP_WORDS": "onnxpress ke", "COMP_CWORD": "1"}
    script = "from onnxpress.cli import app; app(prog_name='onnxpress')"
    told = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["keys"], told.stderr


def test_a_version_stands_for_its_network(scripted, cli, tmp_path):
    scripted.on("GET", "/models", {"json": {"items": [MODEL | {"version": 2}], "next_cursor": None}})
    scripted.on("GET", "/models/mdl_1", {"json": MODEL})
    scripted.on("GET", "/models/mdl_1/content", {"body": LARGE})
    done = cli(scripted.url, KEY, "download", "a/net@2", "--out", tmp_path / "out.onnx")
    assert (done.code, (tmp_path / "out.onnx").read_bytes()) == (0, LARGE), done.stderr
    assert "name=a%2Fnet" in scripted.requests[0].path
    assert "version=2" in scripted.requests[0].path
    scripted.on("GET", "/models", {"json": {"items": [], "next_cursor": None}})
    gone = cli(scripted.url, KEY, "download", "net@9", "--out", tmp_path / "other.onnx")
    assert (gone.code, "no model net@9" in gone.stderr) == (ExitCode.USAGE, True), gone.stderr


def test_aliases(scripted, cli):
    moves = [
        {"model": "mdl_2", "rollback": False, "key": "key_1", "note": "faster", "at": "2026-01-02T03:04:05Z"},
        {"model": "mdl_1", "rollback": False, "key": None, "note": None, "at": "2026-01-01T03:04:05Z"},
    ]
    row = {"name": "prod", "model": "mdl_2", "moved_at": "2026-01-02T03:04:05Z"}
    scripted.on("GET", "/aliases", {"json": {"items": [row]}})
    scripted.on("GET", "/aliases/prod", {"json": row | {"history": moves}})
    scripted.on("PUT", "/aliases/prod", {"json": row | {"history": moves}})
    scripted.on("POST", "/aliases/prod:rollback", {"json": row | {"model": "mdl_1", "history": []}})
    scripted.on("DELETE", "/aliases/prod", {"status": 204})
    assert cli(scripted.url, KEY, "alias", "list").stdout == "prod\n"
    shown = cli(scripted.url, KEY, "alias", "history", "@prod")
    assert (shown.stdout, "faster" in shown.stderr) == ("mdl_2\n", True)
    assert cli(scripted.url, KEY, "alias", "set", "prod", "@staging", "--note", "faster").stdout == "mdl_2\n"
    assert json.loads(scripted.asked("PUT", "/aliases/prod")[0].body) == {"model": "@staging", "note": "faster"}
    assert cli(scripted.url, KEY, "alias", "rollback", "prod").stdout == "mdl_1\n"
    assert json.loads(scripted.asked("POST", "/aliases/prod:rollback")[0].body) == {"expected": "mdl_2"}
    assert cli(scripted.url, KEY, "alias", "remove", "@prod").code == 0
    scripted.on("GET", "/models/@prod", {"json": {"id": "mdl_2", "state": "ready", "sha256": SHA256}})
    scripted.on("GET", "/models/@prod/content", {"body": LARGE})
    assert cli(scripted.url, KEY, "download", "@prod", "--out", "prod.onnx").code == 0
    assert Path("prod.onnx").read_bytes() == LARGE


def test_one_pass_is_shown_with_its_parameters(scripted, cli):
    schema = {"properties": {"type": {"const": "prune"}, "sparsity": {"type": "number", "minimum": 0, "maximum": 1}}}
    schema["properties"]["sparsity"]["description"] = "Share of channels that go."
    found = {"type": "prune", "summary": "Drop channels.", "lossless": False, "needs_data": True, "schema": schema}
    scripted.on("GET", "/passes", {"json": {"items": [found | {"defaults": {"sparsity": 0.5}}]}})
    done = cli(scripted.url, KEY, "passes", "prune")
    assert (done.code, json.loads(done.stdout)) == (0, {"type": "prune", "sparsity": 0.5})
    for words in ("Drop channels.", "needs data, lossy", "at least 0 at most 1", "Share of channels that go."):
        assert words in done.stderr
    missing = cli(scripted.url, KEY, "passes", "prun")
    assert (missing.code, "did you mean prune?" in missing.stderr) == (ExitCode.USAGE, True)


def test_jobs_are_shown_with_the_names_of_their_networks_and_whole_ids():
    place = {"ahead": 2, "begins_in_s": 41.3, "slots": 1}
    queued = {"id": "job_" + "1" * 26, "status": "queued", "model": "mdl_1", "queue": place}
    job = onnxpress.Job.from_document(queued)
    console = Console(width=200, file=io.StringIO())
    console.print(job_table([job], {"mdl_1": "detector"}))
    for words in (job.id, "detector", "queued, behind 2 others, begins in about 41 s"):
        assert words in console.file.getvalue()


def test_who_waits_for_a_queued_job_is_told_of_each_place_once(scripted, cli):
    job = {"id": "job_" + "1" * 26, "kind": "compress", "verdict": "none"}
    places = [(2, 41.0), (2, 40.0), (1, 20.0)]
    answers = [{**job, "status": "queued", "queue": {"ahead": n, "begins_in_s": s, "slots": 1}} for n, s in places]
    answers.append({**job, "status": "succeeded", "queue": None})
    scripted.on("GET", f"/jobs/{job['id']}", *({"json": answer} for answer in answers))
    done = cli(scripted.url, KEY, "wait", job["id"])
    told = [line for line in done.stderr.splitlines() if line.startswith("queued")]
    assert told == ["queued, behind 2 others, begins in about 41 s", "queued, behind 1 other, begins in about 20 s"]
