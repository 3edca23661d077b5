"""The client and the real service: nothing here is scripted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxpress
from onnxpress.exit_codes import ExitCode
from onnxpress.file_transfer import digest

SIMPLIFY = {"passes": [{"type": "simplify"}]}


def test_an_upload_is_inspected_and_has_its_digest(service, net, network):
    model = service.models.get(network)
    assert (model.state, model.sha256) == ("ready", hashlib.sha256(net.read_bytes()).hexdigest())
    assert model.inspection is not None
    assert network in {one.id for one in service.models.list()}


def test_the_same_upload_under_one_key_is_one_model(service, net):
    first, again = (service.models.upload(net, idempotency_key="once").id for _ in range(2))
    assert first == again


def test_what_is_no_network_is_refused_with_its_reason(service, tmp_path):
    (tmp_path / "net.onnx").write_text("not a network")
    with pytest.raises(onnxpress.InvalidError) as caught:
        service.models.upload(tmp_path / "net.onnx")
    assert caught.value.problem.code == "model_invalid"


def test_bytes_that_changed_after_hashing_are_refused(service, net, tmp_path):
    (tmp_path / "net.onnx").write_bytes(net.read_bytes())
    wrong = replace(digest(tmp_path / "net.onnx"), sha256="0" * 64)
    with pytest.raises(onnxpress.RequestRefusedError, match=r"(?i)digest|sha"):
        service.models.upload(wrong)


def test_a_wrong_key_is_refused(embedded):
    with onnxpress.Client(embedded.url, "opk_wrong_key") as stranger, pytest.raises(onnxpress.AuthenticationError):
        next(stranger.jobs.list())


def test_a_spec_that_is_wrong_names_its_places(service, network):
    with pytest.raises(onnxpress.InvalidError) as caught:
        service.jobs.submit({"model": network, "recipe": {"passes": [{"type": "shrink"}]}})
    assert any(fault.where.startswith("/recipe/passes/0") for fault in caught.value.problem.errors)


def test_a_job_gives_a_network_and_a_report(service, compressed, tmp_path):
    report = service.jobs.report(compressed.id)
    path = service.jobs.download(compressed.id, tmp_path / "small.onnx")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 == report["compressed"]["sha256"]
    assert service.artifacts.download(sha256, tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert "top1" in service.jobs.report_markdown(compressed.id)
    assert compressed.verdict == "pass"


def test_jobs_are_found_by_label(service, compressed):
    assert compressed.id in {job.id for job in service.jobs.list(label="made-by=tests")}
    assert list(service.jobs.list(label="made-by=nobody")) == []


def test_passes_and_targets(service):
    assert {"simplify", "quantize_static"} <= {one["type"] for one in service.passes()}
    assert "cpu" in {one["provider"] for one in service.targets()}


def test_the_verbs_about_a_job(embedded, key, cli, compressed, tmp_path):
    def run(*words):
        return cli(embedded.url, key, *words)

    assert compressed.id in run("jobs").stdout.split()
    assert run("wait", compressed.id).code == ExitCode.OK
    assert json.loads(run("report", compressed.id, "--json").stdout)["verdict"]["outcome"] == "pass"
    assert "verdict: pass" in run("report", compressed.id).stderr
    assert run("report", compressed.id, "--markdown").stdout.startswith("#")
    assert run("report", compressed.id, "--out", "report.json").code == ExitCode.OK
    assert json.loads((tmp_path / "report.json").read_text())["kind"] == "compress"
    assert run("download", compressed.id, "--out", "small.onnx").stdout == "small.onnx\n"
    sha256 = hashlib.sha256((tmp_path / "small.onnx").read_bytes()).hexdigest()
    assert run("download", sha256, "--out", "again.onnx").code == ExitCode.OK
    assert run("download", compressed.output_model, "--out", "third.onnx").code == ExitCode.OK
    assert run("download", "nonsense", "--out", "fourth.onnx").code == ExitCode.USAGE
    assert run("download", "f" * 64, "--out", "fourth.onnx").code == ExitCode.USAGE
    assert run("cancel", compressed.id).code == ExitCode.USAGE
    assert "simplify" in run("passes").stdout.split()
    assert "cpu" in run("targets").stdout.split()


def test_compress_the_whole_way(embedded, key, cli, net, npz, tmp_path):
    """From files to a file: uploads, progress, table, report, download; and a gate that fails makes it 3."""
    gates = ["--gate", "size_bytes max_ratio 1%", "--gate", "top1 max_drop 50%"]
    to = ["--out", "small.onnx", "--report", "report.md", "--json"]
    done = cli(embedded.url, key, "compress", net, "--data", npz, "--recipe", "simplify", *gates, *to)
    assert done.code == ExitCode.GATE_FAILED, done.stderr
    sha256 = hashlib.sha256((tmp_path / "small.onnx").read_bytes()).hexdigest()
    assert sha256 == done.json["report"]["compressed"]["sha256"]
    assert (tmp_path / "report.md").read_text().startswith("#")
    assert f"upload {net.name}" in done.stderr
    assert "step 1/1 simplify" in done.stderr
    assert "latency p50" in done.stderr
    assert "verdict: fail" in done.stderr


def test_an_interrupt_cancels_the_real_job(service, embedded, key, network, data):
    words = ["compress", network, "--data", data, "--recipe", "int8"]
    env = {"PATH": os.environ["PATH"], "ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": key}
    argv = [sys.executable, "-m", "onnxpress", *words]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        job_id = process.stdout.readline().strip()
        for job in service.jobs.updates(job_id, timeout=240):
            if job.status == "running":
                break
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=240)
    assert process.returncode == ExitCode.INTERRUPTED, told
    with pytest.raises(onnxpress.JobFailedError) as caught:
        service.jobs.wait(job_id, timeout=240)
    assert caught.value.job.status == "cancelled"


def test_waiting_for_a_cancelled_job_is_4_and_for_a_slow_one_6(service, embedded, key, cli, network, data):
    spec = {"kind": "compress", "model": network, "dataset": data, "recipe": SIMPLIFY}
    job = service.jobs.submit(spec)
    assert cli(embedded.url, key, "wait", job.id, "--timeout", "0.1").code == ExitCode.TIMEOUT
    assert cli(embedded.url, key, "cancel", job.id).code == ExitCode.OK
    assert cli(embedded.url, key, "wait", job.id).code == ExitCode.JOB_FAILED


def test_chains_cached_results_and_archives(service, net, npz, tmp_path):
    """A network with external data, a job on it, a job on that job's output, and the first one again."""
    model = onnx.load(net)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    with zipfile.ZipFile(tmp_path / "net.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("net.onnx", "net.data"):
            archive.write(tmp_path / name, name)
    stored = service.models.upload(tmp_path / "net.zip", timeout=120)
    assert stored.inspection["external_data"]
    service.models.download(stored.id, tmp_path / "back.zip")
    with zipfile.ZipFile(tmp_path / "back.zip") as archive:
        assert archive.read("net.data") == (tmp_path / "net.data").read_bytes()
    data = service.datasets.upload(npz).id
    spec = {"model": stored.id, "dataset": data, "recipe": SIMPLIFY, "labels": {"test": "chain"}}
    assert service.jobs.validate(spec)["valid"]
    first = service.jobs.submit(spec)
    second = service.jobs.submit({**spec, "model": first.output_model})
    assert service.jobs.wait(second.id, timeout=300).succeeded
    kinds = [event.type for event in service.jobs.events(second.id, timeout=240)]
    assert (kinds[0], kinds[-1]) == ("waiting", "succeeded")
    assert kinds.index("released") < kinds.index("running")
    assert "succeeded" in service.jobs.logs(first.id)
    lineage = service.models.lineage(second.output_model)
    assert [one["id"] for one in lineage["ancestors"]] == [first.output_model, stored.id]
    again = service.jobs.submit(spec)
    # It has ended already in the answer.
    assert (again.succeeded, again.cache) == (True, "hit")
    assert service.jobs.report(again.id) == service.jobs.report(first.id)
    service.jobs.download(again.id, tmp_path / "small.onnx")
    key = service.keys.create("reader", ["read"])
    with onnxpress.Client(service.url, key.text) as reader:
        assert reader.models.get(stored.id).name == "net"
        service.keys.revoke(key.id)
        with pytest.raises(onnxpress.AuthenticationError):
            reader.models.get(stored.id)


def test_tenants_are_made_limited_and_suspended(service, embedded, key, cli):
    made = cli(
        embedded.url, key, "tenants", "create", "team", "--name", "Team", "--quota-bytes", "2MB", "--quota-jobs", 3
    )
    assert (made.code, made.stdout) == (0, "team\n"), made.stderr
    again = cli(embedded.url, key, "tenants", "create", "team")
    assert again.code == ExitCode.USAGE, again.stderr
    assert "team" in again.stderr
    assert {"default", "team"} <= set(cli(embedded.url, key, "tenants", "list").stdout.split())
    text = cli(embedded.url, key, "tenants", "key", "team", "first").stdout.strip()
    changed = cli(
        embedded.url, key, "tenants", "set", "team", "--quota-cpu", "1h", "--quota-jobs", "default", "--rate", 50
    )
    assert changed.code == 0, changed.stderr
    shown = cli(embedded.url, key, "tenants", "show", "team", "--json").json["tenant"]
    limits = {
        "quota_bytes": 2_000_000,
        "quota_jobs": None,
        "quota_cpu_s": 3600.0,
        "rate_per_s": 50.0,
        "rate_burst": None,
    }
    assert {name: shown[name] for name in limits} == limits
    own = cli(embedded.url, text, "tenants", "show")
    assert (own.code, own.stdout) == (0, "team\n")
    assert "bytes: 0 B of 2.0 MB" in own.stderr
    # Only whoever operates the service reaches over all.
    refused = cli(embedded.url, text, "tenants", "list")
    assert refused.code != 0
    assert "operator" in refused.stderr
    assert cli(embedded.url, key, "tenants", "set", "team", "--suspend").code == 0
    with onnxpress.Client(embedded.url, text) as theirs, pytest.raises(onnxpress.AuthenticationError):
        theirs.tenants.own()
    assert cli(embedded.url, key, "tenants", "set", "team", "--resume").code == 0
    with onnxpress.Client(embedded.url, text) as theirs:
        assert theirs.tenants.own().suspended_at is None
    wrong = cli(embedded.url, key, "tenants", "set", "team", "--quota-jobs", "many")
    assert (wrong.code, "many" in wrong.stderr) == (ExitCode.USAGE, True)


def test_what_could_be_pruned(service, embedded, key, cli, net, network):
    found = service.models.prunability(network, timeout=120)
    assert found.parameters == 16 * 3 * 9 + 16 * 10
    assert [(group.kind, group.channels) for group in found.groups] == [("channels", 16)]
    members = {(member["initializer"], member["axis"], member["width"]) for member in found.groups[0].members}
    assert members == {("w1", 0, 16), ("w2", 0, 16)}
    assert any("network's output" in item.reason for item in found.frozen)
    # The same bytes by a file's name: sent again they are the same artifact, whose analysis is there.
    done = cli(embedded.url, key, "prunability", net, "--json")
    assert (done.code, done.json["prunability"]) == (0, dict(found.document))
    shown = cli(embedded.url, key, "prunability", network)
    assert (shown.code, shown.stdout) == (0, f"{network}\n")
    assert "channels that can go" in shown.stderr
    assert "w1, w2" in shown.stderr


def test_an_archive_is_sent_once_and_its_download_taken_up(service, net, tmp_path, monkeypatch):
    model = onnx.load(net)
    random = np.random.default_rng(5)
    model.graph.initializer[0].raw_data = random.standard_normal(16 * 3 * 9).astype(np.float32).tobytes()
    wide = random.standard_normal(1 << 18).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(wide, "unused"))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        for name in ("net.onnx", "net.data"):
            archive.write(tmp_path / name, name)
    first = service.models.upload(tmp_path / "net.zip", timeout=120)
    passed = []
    again = service.models.upload(
        tmp_path / "net.zip", name="again", timeout=120, progress=lambda *told: passed.append(told)
    )
    assert (again.id != first.id, again.artifact, again.state) == (True, first.artifact, "ready")
    assert passed == [], "no byte of it was sent"
    # The download breaks in the middle, once.
    taken, sizes = httpx.Response.iter_raw, []

    def broken(self, *args, **more):
        for piece in taken(self, *args, **more):
            sizes.append(len(piece) if self.url.path.endswith("/content") else 0)
            yield piece
            if sum(sizes) > 1 << 19 and not cut:
                cut.append(sum(sizes))
                raise httpx.ReadError("cut")

    cut = []
    monkeypatch.setattr(httpx.Response, "iter_raw", broken)
    service.models.download(first.id, tmp_path / "back.zip", timeout=240)
    assert len(cut) == 1
    assert sum(sizes) == (tmp_path / "back.zip").stat().st_size, "no byte came twice"
    with zipfile.ZipFile(tmp_path / "back.zip") as archive:
        assert archive.read("net.data") == (tmp_path / "net.data").read_bytes()


def test_models_by_tag_and_who_changed_them(service, embedded, key, cli, network):
    service.models.change(network, tags=["found-by"])
    assert [one.id for one in service.models.list(tags=["found-by"])] == [network]
    assert cli(embedded.url, key, "models", "--tag", "found-by").stdout == f"{network}\n"
    assert cli(embedded.url, key, "models", "--tag", "found-by", "--tag", "other").stdout == ""
    assert cli(embedded.url, key, "models", "--tag", "found-by", "--json").json["items"][0]["id"] == network
    last = next(service.audit(subject=network))
    assert (last.action, last.subject) == ("change_model", network)
    told = cli(embedded.url, key, "audit", "--subject", network, "--action", "change_model", "--limit", "1").stdout
    assert told.split()[1:] == [last.key, "change_model", network]
    assert cli(embedded.url, key, "audit", "--limit", "2", "--json").json["items"][1]["at"]


def test_an_analysis_keeps_its_deadline(scripted, client, cli):
    scripted.on("GET", "/models/mdl_1/prunability", {"status": 202, "json": {"model": "mdl_1", "status": "queued"}})
    with pytest.raises(onnxpress.WaitTimeoutError):
        client.models.prunability("mdl_1", timeout=0.3)
    assert cli(scripted.url, "opk_a_b", "prunability", "mdl_1", "--timeout", "0.3").code == ExitCode.TIMEOUT


def test_raw_data_and_what_was_done_to_them_reach_the_service(service, tmp_path):
    (tmp_path / "table.csv").write_text("a,b,y\n1,2,no\n3,4,yes\n")
    made = onnxpress.csv_to_npz(tmp_path / "table.csv", tmp_path / "table.npz", name="x", label="y")
    stored = service.datasets.upload(made.path)
    assert stored.preprocessing == made.declaration
    assert service.datasets.get(stored.id).preprocessing["classes"] == ["no", "yes"]


def test_a_network_with_data_beside_it_reaches_the_service(service, net, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx.load(net), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert service.models.upload(path).inspection["external_data"]
    (tmp_path / "net.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(onnxpress.UsageError, match="pickle"):
        service.models.upload(tmp_path / "net.pt")
    # Whoever does not ask the client is told by the service.
    raw = digest(tmp_path / "net.pt")
    with pytest.raises(onnxpress.InvalidError, match=r"torch\.onnx\.export"):
        service.models.upload(raw)
