"""Dockerfile, Compose file and Kubernetes manifests say what is: settings that exist, commands that parse, nothing as root."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from api.__main__ import KEEP_ALIVE_S, MAX_HEADER_BYTES
from api.client_address import Proxies
from api.uploads import FORM_WORDS
from api.uvicorn_protocol import HEAD_S
from services import metrics
from settings import Settings
from standalone.__main__ import _parser
from worker.__main__ import _parser as worker_parser

ROOT = Path(__file__).resolve().parents[2]
FILLED_IN = {"POSTGRES_PASSWORD": "one", "REDIS_PASSWORD": "two"}
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MANIFESTS = [
    one for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml") for one in yaml.safe_load_all(path.read_text())
]
PODS = [one for one in MANIFESTS if one["kind"] in {"Deployment", "Job"}]


def composed():
    """The Compose file as Compose reads it: variables filled in."""

    def value(found):
        name, default = found[1], found[2]
        return EXAMPLE[name] or FILLED_IN.get(name) or (default or "")

    return yaml.safe_load(re.sub(r"\$\{([A-Z_]+)(?::[-?]([^}]*))?\}", value, COMPOSE_TEXT))


SERVICES = composed()["services"]
OURS = {name: one for name, one in SERVICES.items() if str(one["image"]).startswith("onnxpress:")}


def fields_of(environment):
    assert environment
    assert all(name.startswith("ONNXPRESS_") for name in environment)
    return {name.removeprefix("ONNXPRESS_").lower(): value or "" for name, value in environment.items()}


def parses(words):
    if words[0] == "worker":
        return worker_parser(Settings()).parse_args(words[1:])
    return _parser().parse_args(words)


def test_compose_has_every_part():
    assert set(SERVICES) == {"postgres", "redis", "proxy", *OURS}
    assert set(OURS) == {"migrate", "api", "inspect", "worker", "worker-train", "worker-gpu"}
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-train"]["profiles"] == ["train"]
    for name in set(OURS) - {"migrate"}:
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", OURS)
def test_compose_settings_exist_and_are_valid(name):
    settings = Settings(**fields_of(OURS[name]["environment"]))
    assert settings.database_url.startswith("postgresql://")
    assert settings.broker.startswith("redis://")


@pytest.mark.parametrize("name", OURS)
def test_compose_runs_commands_that_exist_and_confines_them(name):
    service = OURS[name]
    assert parses(service["command"])
    assert (service["init"], service["read_only"], service["cap_drop"]) == (True, True, ["ALL"])
    wanted = service["build"]["args"]
    extras = [wanted["EP"], *wanted.get("EXTRAS", "s3").split(",")]
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    assert service["image"] == "onnxpress:" + "-".join(extra for extra in extras if extra != "s3")


def test_the_example_names_every_variable_and_no_other():
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE_TEXT))
    assert used == set(EXAMPLE)
    assert {name.removeprefix("ONNXPRESS_").lower() for name in EXAMPLE if name.startswith("ONNXPRESS_")} <= set(
        Settings.model_fields
    )


def test_the_proxy_keeps_to_the_limits_of_the_api():
    text = (ROOT / "deploy" / "Caddyfile").read_text()
    assert f"read_header {HEAD_S:g}s" in text
    assert f"idle {KEEP_ALIVE_S}s" in text
    assert f"max_header_size {MAX_HEADER_BYTES >> 10}KB" in text
    most = max(int(EXAMPLE[f"ONNXPRESS_MAX_{noun}_BYTES"]) for noun in ("MODEL", "DATASET"))
    assert int(EXAMPLE["MAX_BODY_BYTES"]) >= most + FORM_WORDS
    # Who asks the API is told by Caddy, whose address there is one of these.
    assert "172.18.0.5" in Proxies(Settings(**fields_of(OURS["api"]["environment"])).proxies)
    assert all(one["logging"]["options"]["max-size"] for one in SERVICES.values())


def test_the_image_has_every_room_and_is_no_root():
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {found[1] for found in re.finditer(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE)}
    # And what it is made of, which is none of ours.
    assert copied == packages | {"requirements"}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert packages | {"requirements"} <= kept
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.search(r"^USER onnxpress$", final, re.MULTILINE)
    assert 'ENTRYPOINT ["onnxpress-server"]' in final
    assert fields_of(dict(re.findall(r"(ONNXPRESS_[A-Z_]+)=(\S+)", DOCKERFILE))).keys() <= Settings.model_fields.keys()


@pytest.mark.parametrize("manifest", PODS, ids=lambda one: one["metadata"]["name"])
def test_kubernetes_runs_commands_that_exist_and_confines_them(manifest):
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert parses(container["args"])
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    if manifest["kind"] == "Deployment":
        assert manifest["spec"]["selector"]["matchLabels"] == manifest["spec"]["template"]["metadata"]["labels"]


def test_kubernetes_settings_exist_and_are_valid():
    told = {}
    for one in MANIFESTS:
        told |= one.get("data", {}) if one["kind"] == "ConfigMap" else one.get("stringData", {})
    Settings(**fields_of(told))


def test_kubernetes_scales_a_deployment_on_a_metric_that_exists(tmp_path):
    from services import db

    (scaler,) = [one for one in MANIFESTS if one["kind"] == "HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"]["name"] in {one["metadata"]["name"] for one in PODS}
    settings = Settings(data_dir=tmp_path)
    db.upgrade(settings)
    database = db.Database.from_settings(settings)
    with database.reading() as session:
        known = {family.name for family in metrics.collect(session)}
    database.dispose()
    (metric,) = scaler["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] in known


def test_compose_accepts_its_file(tmp_path):
    command = _compose()
    if command is None:
        pytest.skip("no Docker Compose on this machine")
    filled = "".join(f"{name}={FILLED_IN.get(name, value)}\n" for name, value in EXAMPLE.items())
    (tmp_path / "env").write_text(filled)
    argv = [*command, "--env-file", str(tmp_path / "env"), "-f", str(ROOT / "docker-compose.yml"), "config"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(yaml.safe_load(ran.stdout)["services"]) >= set(SERVICES) - {"worker-gpu"}


def _compose():
    """Compose as a plugin of the client, or as the program of its own that it was."""
    client = shutil.which("docker")
    if client and subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [client, "compose"]
    alone = shutil.which("docker-compose")
    return [alone] if alone else None
