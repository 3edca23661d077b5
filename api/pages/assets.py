"""Styles and scripts: ours, and Plotly's from its Python package; a browser keeps them until the version changes."""

import gzip
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from api.errors import ApiError
from api.plotly_script import NAME as PLOTLY
from api.plotly_script import plotly_script

router = APIRouter(prefix="/static", include_in_schema=False)

_HERE = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@router.get("/{version}/{name}")
def get_asset(version: str, name: str, request: Request) -> Response:
    """Give a style or a script."""
    if name not in _names():
        raise ApiError(404)
    plain, packed, digest = _content(name)
    # A page of another version may ask for what is not that one's any more: it gets ours, and keeps it for no time.
    age = "public, max-age=31536000, immutable" if version == digest else "no-cache"
    headers = {"Cache-Control": age, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=_TYPES[Path(name).suffix])
    return Response(plain, headers=headers, media_type=_TYPES[Path(name).suffix])


def address(name: str) -> str:
    """Give the address of a style or a script; it names the content."""
    return f"/static/{_content(name)[2]}/{name}"


def text_of(name: str) -> str:
    """Give a style or a script as text, for pages that stand alone."""
    return _content(name)[0].decode()


@cache
def plotly_style_ids() -> tuple[str, ...]:
    """Give the ids of style elements that Plotly's script adds, for its maps, unless there is an element with that id.

    A page's policy would refuse such an element, and a browser would complain of it.
    """
    return tuple(dict.fromkeys(re.findall(r'getElementById\("([0-9a-f]{64})"\)', text_of(PLOTLY))))


@cache
def _names() -> frozenset[str]:
    return frozenset({PLOTLY, *(path.name for path in _HERE.iterdir() if path.suffix in _TYPES)})


@cache
def _content(name: str) -> tuple[bytes, bytes, str]:
    path = plotly_script() if name == PLOTLY else _HERE / name
    plain = path.read_bytes()
    return plain, gzip.compress(plain, 6, mtime=0), hashlib.sha256(plain).hexdigest()[:16]
