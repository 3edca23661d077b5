"""Networks that leave the service: what goes with them is held against the tools that others read it with."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime
import pytest

import onnxpress
from onnxpress.exit_codes import ExitCode
from onnxpress.oci_registry import Reference, Registry


@pytest.fixture
def run(embedded, key, cli):
    """Give the command line on the real service."""
    return lambda *words: cli(embedded.url, key, *words)


@pytest.fixture(scope="module")
def hub(service, compressed, tmp_path_factory):
    """Give the hub folder of a job's result, the original beside it."""
    folder = tmp_path_factory.mktemp("hub") / "net"
    return service.exports.folder(compressed.output_model, folder, original=True)


def _verified(folder, key, signature="model.sig"):
    """Ask the public tool whether a folder, or a file, is what was signed."""
    command = ["verify", "key", str(folder), "--signature", str(folder / signature), "--public_key", str(key)]
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *command], capture_output=True, text=True, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


def _bill(service, model_id):
    bill = service.exports.bill_of_materials(model_id)
    # Here: it loads a grammar for seconds, and every process with tests reads this file.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    return bill["metadata"]["component"]


def test_a_hub_folder_has_the_names_that_hubs_use(hub, service, compressed, net):
    files = sorted(path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "bom.cdx.json",
        "model.sig",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "onnxpress.json",
        "report.json",
        "signing-key.pub",
    ]
    assert (hub / "onnx" / "model.onnx").read_bytes() == net.read_bytes()
    report = service.jobs.report(compressed.id)
    small = (hub / "onnx" / "model_int8.onnx").read_bytes()
    assert hashlib.sha256(small).hexdigest() == report["compressed"]["sha256"]
    assert json.loads((hub / "report.json").read_text()) == report
    assert json.loads((hub / "onnxpress.json").read_text())["loading"] == report["loading"]


def test_its_card_tells_what_was_measured_and_its_lines_load_it(hub, monkeypatch):
    card = (hub / "README.md").read_text()
    head, front, body = card.split("---\n", 2)
    assert (head, "- int8" in front.splitlines()) == ("", True)
    assert "| top1 |" in body
    assert "1. `quantize_static`: " in body
    lines = body.split("```python\n")[1].split("```")[0]
    made = {}
    monkeypatch.chdir(hub)
    exec(lines, made)
    (given,) = made["session"].run(None, {"image": np.zeros((1, 3, 12, 12), np.float32)})
    assert given.shape == (1, 10)


def test_the_public_tool_verifies_the_signature_and_tells_what_was_changed(hub, service, tmp_path):
    """The key is the one that the service gives, not the one that lies in the folder."""
    key = tmp_path / "key.pub"
    key.write_bytes(service.exports.signing_key())
    good, said = _verified(hub, key)
    assert good, said
    shutil.copytree(hub, tmp_path / "changed")
    with (tmp_path / "changed" / "README.md").open("a") as card:
        card.write("Twice as fast.\n")
    good, said = _verified(tmp_path / "changed", key)
    assert not good
    assert "README.md" in said


def test_the_network_alone_is_signed_too(service, embedded, key, compressed, tmp_path):
    import httpx

    network = service.models.download(compressed.output_model, tmp_path / "net.onnx")
    signed = httpx.get(
        f"{embedded.url}/v1/models/{compressed.output_model}/signature", headers={"Authorization": f"Bearer {key}"}
    )
    (tmp_path / "net.sig").write_bytes(signed.content)
    (tmp_path / "key.pub").write_bytes(service.exports.signing_key())
    command = ["verify", "key", str(network), "--signature", "net.sig", "--public_key", "key.pub"]
    subprocess.run([sys.executable, "-m", "model_signing", *command], cwd=tmp_path, check=True, capture_output=True)


def test_the_bill_of_materials_is_one_and_names_ancestors_and_figures(service, compressed, network, net):
    component = _bill(service, compressed.output_model)
    (ancestor,) = component["pedigree"]["ancestors"]
    assert ancestor["bom-ref"] == network
    assert ancestor["hashes"][0]["content"] == hashlib.sha256(net.read_bytes()).hexdigest()
    metrics = {each["type"]: each for each in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    report = service.jobs.report(compressed.id)
    assert float(metrics["size_bytes"]["value"]) == report["size"]["compressed"]
    assert float(metrics["top1"]["value"]) == pytest.approx(report["quality"][0]["compressed"], rel=1e-5)
    assert "confidenceInterval" in metrics["latency_p50_ratio"]
    assert component["hashes"][0]["content"] == report["compressed"]["sha256"]


def test_an_uploaded_network_has_a_card_and_a_bill_but_no_way_that_was_measured(run, service, network):
    assert "pedigree" not in _bill(service, network)
    assert "as it was uploaded" in run("card", network).stdout
    refused = run("card", network, "--load")
    assert refused.code == ExitCode.USAGE
    assert "Compress it" in refused.stderr
    assert run("export", network, "--to", "taken", "--original").code == ExitCode.USAGE


def test_the_command_line_gives_card_bill_and_lines(run, compressed):
    assert run("card", compressed.id).stdout.startswith("---\nlibrary_name: onnx")
    assert json.loads(run("card", compressed.output_model, "--bom").stdout)["bomFormat"] == "CycloneDX"
    assert "InferenceSession" in run("card", compressed.id, "--load").stdout
    assert run("card", compressed.id, "--json").json["loading"]["provider"] == "CPUExecutionProvider"


def test_a_triton_repository_says_what_goes_in_and_comes_out(run, service, compressed, tmp_path):
    done = run("export", compressed.id, "--to", "repository", "--as", "triton", "--max-batch", 8)
    assert done.code == ExitCode.OK, done.stderr
    (config,) = (tmp_path / "repository").glob("*/config.pbtxt")
    network = config.parent / "1" / "model.onnx"
    assert (
        hashlib.sha256(network.read_bytes()).hexdigest() == service.jobs.report(compressed.id)["compressed"]["sha256"]
    )
    lines = config.read_text().splitlines()
    assert lines[:3] == [f'name: "{config.parent.name}"', 'backend: "onnxruntime"', "max_batch_size: 8"]
    assert '  { name: "image" data_type: TYPE_FP32 dims: [ 3, 12, 12 ] }' in lines
    assert '  { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] }' in lines
    assert 'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }' in lines
    unbatched = service.exports.folder(compressed.output_model, tmp_path / "unbatched", layout="triton")
    assert "dims: [ -1, 3, 12, 12 ]" in next(unbatched.glob("*/config.pbtxt")).read_text()


def test_onnxruntimes_own_format_gives_what_the_network_gives(run, service, compressed, tmp_path):
    assert run("export", compressed.id, "--to", "net.ort", "--as", "ort").code == ExitCode.OK
    service.jobs.download(compressed.id, tmp_path / "net.onnx")
    image = np.random.default_rng(0).random((2, 3, 12, 12), dtype=np.float32)
    given = [
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(
            None, {"image": image}
        )[0]
        for name in ("net.onnx", "net.ort")
    ]
    np.testing.assert_allclose(given[1], given[0], atol=1e-4)
    assert (tmp_path / "net.ort").read_bytes()[4:8] == b"ORTM"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "there"), "is not an empty folder"),
        (("--to", "oci://localhost:1/Upper/Case"), "HOST/REPOSITORY:TAG"),
        (("--to", "x", "--as", "zip"), "it is one of hub, triton, ort"),
        (("--to", "x", "--alias", "prod"), "--alias is MLflow's"),
        (("--to", "mlflow://net", "--as", "triton"), "takes --as hub"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_way_out(run, compressed, tmp_path, words, said):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    done = run("export", compressed.id, *words)
    assert done.code == ExitCode.USAGE
    assert said in " ".join(done.stderr.split())


class _Registry(BaseHTTPRequestHandler):
    """What a push and a pull need of the OCI distribution specification: it takes nothing whose digest is wrong."""

    protocol_version = "HTTP/1.1"
    blobs: dict[str, bytes]
    manifests: dict[str, bytes]

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
            self._answer(401, WWW_Authenticate='Basic realm="here"')
            return
        kind, name = self.path.split("/")[-2:]
        found = (self.manifests if kind == "manifests" else self.blobs).get(name)
        self._answer(404 if found is None else 200, found or b"")

    def do_POST(self):
        self._answer(202, Location=f"{self.path}session?state=1")

    def do_PUT(self):
        body = self._body()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if "/manifests/" in self.path:
            named = json.loads(body)
            missing = [
                each["digest"] for each in [named["config"], *named["layers"]] if each["digest"] not in self.blobs
            ]
            if missing:
                self._answer(
                    404, json.dumps({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": missing[0]}]}).encode()
                )
                return
            self.manifests[self.path.rpartition("/")[2]] = body
            self._answer(201)
            return
        asked = parse_qs(urlsplit(self.path).query)
        ok = asked["digest"] == [digest] and asked["state"] == ["1"]
        if ok:
            self.blobs[digest] = body
        self._answer(201 if ok else 400)

    def log_message(self, *_args):
        pass


@pytest.fixture
def registry(monkeypatch):
    """Give the address of a registry that asks for a password, and what it holds."""
    handler = type("Handler", (_Registry,), {"blobs": {}, "manifests": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("ONNXPRESS_OCI_USER", "me")
    monkeypatch.setenv("ONNXPRESS_OCI_PASSWORD", "secret")
    yield f"127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_artifact_of_a_registry_comes_back_as_it_was(registry, embedded, key, compressed, hub, tmp_path):
    """In a process of its own: the command line of tests forgets the environment that the credentials are in."""
    address, held = registry
    place = f"oci://{address}/models/net:v1"
    command = [sys.executable, "-m", "onnxpress", "export", compressed.id, "--original", "--to", place, "--json"]
    env = {
        "ONNXPRESS_URL": embedded.url,
        "ONNXPRESS_API_KEY": key,
        "ONNXPRESS_OCI_USER": "me",
        "ONNXPRESS_OCI_PASSWORD": "secret",
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = held.manifests["v1"]
    assert json.loads(done.stdout)["digest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert json.loads(manifest)["artifactType"] == "application/vnd.onnxpress.model.v1"
    with Registry(Reference.parse(place)) as reader:
        pulled = reader.pull(tmp_path / "pulled")
    for path in (path for path in hub.rglob("*") if path.is_file()):
        assert (pulled / path.relative_to(hub)).read_bytes() == path.read_bytes(), path


def test_a_registry_that_is_away_or_refuses_is_said(registry, tmp_path, monkeypatch):
    address, _ = registry
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ONNXPRESS_OCI_PASSWORD", "wrong")
    with Registry(Reference.parse(f"{address}/net")) as refused, pytest.raises(onnxpress.ServiceError, match="401"):
        refused.push(tmp_path, {})
    with (
        Registry(Reference.parse("127.0.0.1:9/net")) as away,
        pytest.raises(onnxpress.ServiceError, match="does not answer"),
    ):
        away.push(tmp_path, {})
