"""Networks in OCI registries (distribution specification 1.1): a folder pushed as an artifact that `oras pull` gives back."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from onnxpress.errors import ServiceError, UsageError
from onnxpress.problem import Problem

ARTIFACT_TYPE = "application/vnd.onnxpress.model.v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_TITLE = "org.opencontainers.image.title"
_TYPES = {
    ".onnx": "application/vnd.onnx.model",
    ".json": "application/json",
    ".md": "text/markdown",
    ".sig": "application/vnd.dev.sigstore.bundle.v0.3+json",
}
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_CHUNK = 1 << 20
_SILENCE_S = 60.0


class RegistryError(ServiceError):
    """The registry refused, or gave no answer that the specification knows."""

    code = "registry_failed"


@dataclass(frozen=True)
class Reference:
    """A place in a registry: `host/repository:tag`; the tag is `latest` where it is left out."""

    host: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `oci://host/repository:tag`; raises UsageError."""
        found = _REFERENCE.fullmatch(text.removeprefix("oci://"))
        if found is None:
            raise UsageError(f"{text}: a place in a registry is written oci://HOST/REPOSITORY:TAG, in lower case")
        return cls(found["host"], found["repository"], found["tag"] or "latest")

    @property
    def url(self) -> str:
        """The API's address; a registry on this host is asked without TLS."""
        name = self.host.partition(":")[0]
        scheme = "http" if name in {"localhost", "127.0.0.1"} else "https"
        return f"{scheme}://{self.host}/v2/{self.repository}"


class Registry:
    """A repository of a registry, with the credentials of ONNXPRESS_OCI_USER and ONNXPRESS_OCI_PASSWORD if it asks for any."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        user, password = (os.environ.get(f"ONNXPRESS_OCI_{name}", "") for name in ("USER", "PASSWORD"))
        self._credentials = (user, password) if user else None
        self._authorization: str | None = None
        self._http = httpx.Client(timeout=_SILENCE_S, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def push(self, folder: Path, annotations: Mapping[str, str]) -> str:
        """Push the files of a folder as one artifact under the reference's tag; gives the manifest's digest.

        Blobs that the registry has are not sent again. Raises RegistryError.
        """
        layers = [self._layer(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        if not layers:
            raise UsageError(f"{folder} holds no files to push")
        self._send_blob(_digest(_EMPTY), len(_EMPTY), lambda: iter((_EMPTY,)))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": _EMPTY_TYPE, "digest": _digest(_EMPTY), "size": len(_EMPTY)},
            "layers": layers,
            "annotations": dict(annotations),
        }
        body = json.dumps(manifest, sort_keys=True).encode()
        url = f"{self._reference.url}/manifests/{self._reference.tag}"
        self._ask("PUT", url, content=body, headers={"Content-Type": MANIFEST_TYPE})
        return _digest(body)

    def pull(self, folder: Path) -> Path:
        """Fetch an artifact's files into a folder, each checked by its digest; raises RegistryError."""
        url = f"{self._reference.url}/manifests/{self._reference.tag}"
        manifest = self._ask("GET", url, headers={"Accept": MANIFEST_TYPE}).json()
        for layer in manifest["layers"]:
            name = layer.get("annotations", {}).get(_TITLE, "")
            target = folder / name
            if not name or not target.resolve().is_relative_to(folder.resolve()):
                raise _failed(f"the artifact names a file outside of its folder: {name!r}")
            content = self._ask("GET", f"{self._reference.url}/blobs/{layer['digest']}").content
            if _digest(content) != layer["digest"]:
                raise _failed(f"the registry sent other bytes than those of {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder

    def _layer(self, folder: Path, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        size = path.stat().st_size
        self._send_blob(digest, size, lambda: _pieces(path))
        return {
            "mediaType": _TYPES.get(path.suffix, "application/octet-stream"),
            "digest": digest,
            "size": size,
            "annotations": {_TITLE: path.relative_to(folder).as_posix()},
        }

    def _send_blob(self, digest: str, size: int, read: Any) -> None:
        known = self._ask("HEAD", f"{self._reference.url}/blobs/{digest}", allowed=(httpx.codes.NOT_FOUND,))
        if known.status_code == httpx.codes.OK:
            return
        begun = self._ask("POST", f"{self._reference.url}/blobs/uploads/")
        place = httpx.URL(self._reference.url).join(begun.headers.get("Location", ""))
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._ask("PUT", str(place.copy_add_param("digest", digest)), read=read, headers=headers)

    def _ask(
        self,
        method: str,
        url: str,
        *,
        read: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> httpx.Response:
        answer = self._send(method, url, read() if read else content, headers)
        if answer.status_code == httpx.codes.UNAUTHORIZED and self._authorize(
            answer.headers.get("WWW-Authenticate", "")
        ):
            answer = self._send(method, url, read() if read else content, headers)
        if answer.is_success or answer.status_code in allowed:
            return answer
        raise _failed(f"{method} {url}: {answer.status_code} {_said(answer)}".rstrip())

    def _send(self, method: str, url: str, content: Any, headers: Mapping[str, str] | None) -> httpx.Response:
        sent = dict(headers or {})
        if self._authorization:
            sent["Authorization"] = self._authorization
        try:
            return self._http.request(method, url, content=content, headers=sent)
        except httpx.TransportError as error:
            raise _failed(f"the registry {self._reference.host} does not answer: {error}") from error

    def _authorize(self, challenge: str) -> bool:
        """Take up a challenge, with a token or the password itself; False where there is nothing (more) to show."""
        if self._authorization is not None:
            return False
        scheme, values = challenge.partition(" ")[0].lower(), dict(_CHALLENGE.findall(challenge))
        if scheme == "basic" and self._credentials:
            self._authorization = f"Basic {base64.b64encode(':'.join(self._credentials).encode()).decode()}"
        elif scheme == "bearer" and "realm" in values:
            query = {name: values[name] for name in ("service", "scope") if name in values}
            answer = self._http.get(values["realm"], params=query, auth=self._credentials)
            if not answer.is_success:
                return False
            token = answer.json()
            self._authorization = f"Bearer {token.get('token') or token.get('access_token')}"
        return self._authorization is not None


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _said(answer: httpx.Response) -> str:
    try:
        return "; ".join(str(each.get("message", "")) for each in answer.json()["errors"])
    except (ValueError, KeyError, TypeError):
        return ""


def _failed(text: str) -> RegistryError:
    return RegistryError(Problem(text, code="registry_failed"))
