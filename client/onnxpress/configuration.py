"""Where the service is and which key opens it: arguments, then the environment, then the embedded service's files.

The files of an embedded service (`./var/url`, `./var/admin.key`) are believed for loopback addresses only: a checkout
that brings its own `var/url` must not lead a key of the environment elsewhere, nor may a local admin key leave the host.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from onnxpress.errors import UsageError

DEFAULT_URL = "http://127.0.0.1:8765"
EMBEDDED = Path("var")
# Longer than a service takes to drain and to start again.
PATIENCE_S = 120.0
# Who has had no answer yet may have the wrong address.
FIRST_PATIENCE_S = 30.0
# What stands before the host: a name and a password, which no message shows.
_USERINFO = re.compile("(?<=//)[^/?#]*@")


@dataclass(frozen=True)
class Access:
    """The service's address and the key, None where none was found."""

    url: httpx.URL
    key: str | None

    @property
    def local(self) -> bool:
        """Whether the service is on this host."""
        return _is_loopback(self.url)

    @property
    def plaintext(self) -> bool:
        """Whether others on the way can read what is sent."""
        return self.url.scheme == "http" and not self.local


@dataclass(frozen=True)
class Patience:
    """How long to try again while the service is away, in seconds: before its first answer, and after it."""

    first: float
    later: float


def shown(url: httpx.URL | str) -> str:
    """Give an address as it may be printed: without a name and a password."""
    return _USERINFO.sub("", str(url))


def find_access(url: str | None = None, key: str | None = None) -> Access:
    """Find the address and the key; raises UsageError when the address is none or a named key file is not readable."""
    address = _parse(url or os.environ.get("ONNXPRESS_URL") or _embedded_url() or DEFAULT_URL)
    found = key or os.environ.get("ONNXPRESS_API_KEY") or _key_file(address)
    return Access(address, found.strip() if found else None)


def find_patience(seconds: float | None = None) -> Patience:
    """Find how long to try again while the service is away; who says it means it from the start."""
    text = os.environ.get("ONNXPRESS_PATIENCE")
    if seconds is None and not text:
        return Patience(FIRST_PATIENCE_S, PATIENCE_S)
    try:
        said = float(text or "") if seconds is None else seconds
    except ValueError:
        raise UsageError(f"ONNXPRESS_PATIENCE: {text!r} is not a number of seconds") from None
    return Patience(said, said)


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise UsageError(f"the service's URL {shown(url)!r} is none: {shown(str(error))}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"the service's URL {shown(url)!r} must start with http:// or https:// and name a host")
    return parsed


def _embedded_url() -> str | None:
    path = EMBEDDED / "url"
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return text if text and _is_loopback(_parse(text)) else None


def _key_file(address: httpx.URL) -> str | None:
    named = os.environ.get("ONNXPRESS_KEY_FILE")
    if named:
        try:
            return Path(named).read_text()
        except OSError as error:
            raise UsageError(f"ONNXPRESS_KEY_FILE: {named} is not readable ({error.strerror})") from error
    path = EMBEDDED / "admin.key"
    return path.read_text() if _is_loopback(address) and os.access(path, os.R_OK) else None


def _is_loopback(url: httpx.URL) -> bool:
    if url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False
