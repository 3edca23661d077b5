"""The bill of materials names everything that serves, once, and who needs it."""

import json
import os

import pytest

from standalone import broker
from standalone.__main__ import main
from standalone.sbom import installation


def test_everything_that_serves_is_named_once_with_what_it_needs():
    bill = installation()
    parts = {one["name"]: one for one in bill["components"]}
    assert len(parts) == len(bill["components"])
    assert {"numpy", "onnx", "celery", "SQLAlchemy", "sympy", "valkey-server"} <= set(parts)
    assert any(name.startswith("onnxruntime") for name in parts)
    # Who develops it has more.
    assert not {"pytest", "mypy", "ruff", "onnxpress-server"} & set(parts)
    refs = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in parts.values())}
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert set(needs) == refs
    assert {ref for below in needs.values() for ref in below} < refs
    assert parts["kombu"]["bom-ref"] in needs[parts["celery"]["bom-ref"]]


def test_the_binary_of_the_broker_is_in_it_by_its_digest():
    [server] = [one for one in installation()["components"] if one["name"] == "valkey-server"]
    assert server["hashes"] == [{"alg": "SHA-256", "content": broker.bundled().sha256}]


@pytest.fixture
def run():
    """Give the program, which keeps what it makes to itself, and with it all that this process makes."""
    before = os.umask(0o022)
    yield main
    os.umask(before)


def test_it_holds_to_the_specification(run, tmp_path, capsys):
    assert run(["sbom", "--out", str(tmp_path / "sbom.json")]) == 0
    assert run(["sbom"]) == 0
    written = (tmp_path / "sbom.json").read_text()
    assert capsys.readouterr().out == written
    # Here: it loads a grammar for seconds, and every process with tests reads this file.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    assert len(json.loads(written)["components"]) > 40
