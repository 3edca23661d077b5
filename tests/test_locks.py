"""The locks hold what pyproject.toml asks for, every file by its digest, and no address."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("service", "cpu", "client", "dev")
# Their builds differ from index to index.
NOT_LOCKED = {"torch"}
_PINNED = re.compile(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==(\S+?)(?: ; ([^\\]+))? \\$")


def locked(name):
    """Give the versions of each package, with the marker that chooses among them."""
    found = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if line.startswith((" ", "#")):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?|#.*", line), line
            continue
        package, version, marker = _PINNED.fullmatch(line).groups()
        found.setdefault(package, []).append((version, (marker or "").strip()))
    return found


def wanted(folder, *extras):
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("service", wanted(".", "s3")),
        ("cpu", wanted(".", "s3", "cpu")),
        ("client", wanted("client")),
        ("dev", [*wanted(".", "s3", "cpu", "dev"), *wanted("client")]),
    ],
)
def test_a_lock_holds_what_is_asked_for(name, requirements):
    found = locked(name)
    for requirement in requirements:
        package = canonicalize_name(requirement.name)
        versions = [version for version, _ in found.get(package, ())]
        assert versions or package in NOT_LOCKED, f"{requirement}: `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: `make lock`"
    assert not NOT_LOCKED & set(found)


def test_locks_agree_with_each_other():
    whole = locked("dev")
    for name in LOCKS:
        for package, versions in locked(name).items():
            assert dict(versions).keys() <= dict(whole[package]).keys(), f"{name}: {package}"


def test_no_lock_names_an_index():
    for name in LOCKS:
        assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


def test_a_known_vulnerability_is_told_with_what_mends_it():
    audit = runpy.run_path(str(ROOT / "requirements" / "audit.py"))
    told = [
        {"name": "kind", "version": "1.0", "vulns": []},
        {"name": "cruel", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1", "3.0"]}]},
        {"name": "skipped", "skip_reason": "unknown"},
    ]
    assert audit["found_in"](told) == ["cruel 2.0: CVE-1, mended in 2.1, 3.0"]


def test_where_nobody_knows_vulnerabilities_nothing_fails(monkeypatch, capsys):
    # What it asks is away: a proxy that nobody listens at.
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    audit = runpy.run_path(str(ROOT / "requirements" / "audit.py"))
    assert audit["main"]() == 0
    assert "nothing was checked" in capsys.readouterr().out
