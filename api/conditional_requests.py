"""Answers under conditions: `304` for who has it already, a part for who has some of it."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from api.errors import ApiError

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "With If-None-Match: the client has it."}}
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
# Behind the end of everything that is stored.
_FAR = 1 << 63


@dataclass(frozen=True)
class ByteRange:
    """Some of the bytes, from `first` to `last`, both included, of `size`."""

    first: int
    last: int
    size: int

    @property
    def length(self) -> int:
        """How many these are."""
        return self.last - self.first + 1

    @property
    def content_range(self) -> str:
        """Give the value of the header Content-Range."""
        return f"bytes {self.first}-{self.last}/{self.size}"


def etag_of(*versions: object) -> str:
    """Give a strong ETag for what these values determine."""
    return f'"{hashlib.sha256(repr(versions).encode()).hexdigest()[:32]}"'


def etag_matches(request: Request, etag: str) -> bool:
    """Tell whether the client has this representation (If-None-Match, weak comparison)."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag.removeprefix("W/") in [
        one.strip().removeprefix("W/") for one in given.split(",")
    ]


def not_modified(request: Request, response: Response, etag: str) -> Any:
    """Put the ETag on the answer, or give the answer `304` to send instead."""
    response.headers["ETag"] = etag
    if etag_matches(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return None


def requested_range(request: Request, etag: str, size: int) -> ByteRange | None:
    """Give the part that Range and If-Range ask for; None: all of it. Raises 416.

    Several ranges, and what is no range of bytes, are answered with everything, which is always right.
    """
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    # If-Range compares strongly, and a date names no bytes for certain.
    if found is None or request.headers.get("if-range", etag).strip() != etag:
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:
        part = ByteRange(max(0, size - _place(last)), size - 1, size) if _place(last) else None
    elif last and _place(last) < _place(first):
        return None
    else:
        part = ByteRange(_place(first), min(_place(last) if last else size - 1, size - 1), size)
    if part is None or part.first >= size:
        raise ApiError(416, headers={"Content-Range": f"bytes */{size}"})
    return part


def _place(digits: str) -> int:
    """Read a place among bytes: of any length, though Python reads no number of thousands of digits."""
    significant = digits.lstrip("0")
    return min(int(significant or "0"), _FAR) if len(significant) <= len(str(_FAR)) else _FAR
